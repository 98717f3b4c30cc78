"""Final features of a model, for tests that need nothing else of a pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlsi_cache.models import Decoder, record_taps

__all__ = ["final_features"]


def final_features(decoder: Decoder, inputs: Mapping[str, Any]) -> Tensor:
    """``[B, T, D]`` after the final norm; inside ``record_taps`` the same pass fills the taps."""
    with record_taps(decoder, ()) as recorder:
        decoder.backbone(**inputs, use_cache=False)
        return recorder.features
