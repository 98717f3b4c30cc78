"""From dense distributions to a sparse, unbiased record (Sparse Logit Sampling, ACL 2025)."""

from vlsi_cache.sampling.draws import Drawn, coupled_draws, systematic_draws
from vlsi_cache.sampling.order import vocabulary_order
from vlsi_cache.sampling.recorder import TapRecorder
from vlsi_cache.sampling.sparsify import sparsify

__all__ = [
    "Drawn",
    "TapRecorder",
    "coupled_draws",
    "sparsify",
    "systematic_draws",
    "vocabulary_order",
]
