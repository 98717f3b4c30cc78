"""Which dtype weights are held in, and whether forwards run in bfloat16 autocast."""

from __future__ import annotations

import torch

__all__ = ["frozen_dtype", "trained_dtype", "uses_autocast"]


def frozen_dtype(dtype: str, device: torch.device) -> str:
    """Weights' dtype of a backbone that does not train.

    ``auto`` is the checkpoint's own on accelerators and float32 on a CPU, where half precision
    is slow and gains nothing.
    """
    return "float32" if dtype == "auto" and device.type == "cpu" else dtype


def trained_dtype(dtype: str) -> str:
    """Weights' dtype of a model that trains whole: float32 unless another is asked for.

    AdamW's small steps vanish in bfloat16 weights.
    """
    return "float32" if dtype == "auto" else dtype


def uses_autocast(dtype: str, device: torch.device) -> bool:
    """Whether training forwards run in bfloat16 autocast."""
    if device.type != "cuda" or dtype in ("float32", "float16"):
        return False
    return bool(torch.cuda.is_bf16_supported())
