"""Final features of a model, for tests that need nothing else from a pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlsi_cache.models import Decoder, capture_taps

__all__ = ["final_features"]


def final_features(decoder: Decoder, inputs: Mapping[str, Any]) -> Tensor:
    """``[B, T, D]`` after the final norm. Inside ``capture_taps`` the same pass fills the taps."""
    with capture_taps(decoder, ()) as capture:
        decoder.backbone(**inputs, use_cache=False)
        return capture.features
