"""Verbalizers: small networks that read a tapped hidden state as a vocabulary distribution."""

from vlsi_cache.verbalizer.bank import VerbalizerBank, build_verbalizers
from vlsi_cache.verbalizer.checkpoint import (
    VERBALIZERS_FILE,
    VerbalizerConfig,
    load_verbalizers,
    save_verbalizers,
    verbalizers_fingerprint,
)
from vlsi_cache.verbalizer.early import preview_taps
from vlsi_cache.verbalizer.exits.export import export_exits
from vlsi_cache.verbalizer.exits.keeping import EXITS_FOLDER, carry_exits, keep_exits
from vlsi_cache.verbalizer.exits.loading import Exits, load_exits
from vlsi_cache.verbalizer.structures import (
    BlockVerbalizer,
    GatedVerbalizer,
    LensVerbalizer,
    LinearVerbalizer,
)
from vlsi_cache.verbalizer.training import find_verbalizers, obtain_verbalizers
from vlsi_cache.verbalizer.verbalization import Verbalization

__all__ = [
    "EXITS_FOLDER",
    "VERBALIZERS_FILE",
    "BlockVerbalizer",
    "Exits",
    "GatedVerbalizer",
    "LensVerbalizer",
    "LinearVerbalizer",
    "Verbalization",
    "VerbalizerBank",
    "VerbalizerConfig",
    "build_verbalizers",
    "carry_exits",
    "export_exits",
    "find_verbalizers",
    "keep_exits",
    "load_exits",
    "load_verbalizers",
    "obtain_verbalizers",
    "preview_taps",
    "save_verbalizers",
    "verbalizers_fingerprint",
]
