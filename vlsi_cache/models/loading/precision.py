"""Which dtype weights are held in, and whether forwards run in bfloat16 autocast."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["frozen_dtype", "saved_dtype", "trained_dtype", "uses_autocast"]


def frozen_dtype(dtype: str, device: torch.device) -> str:
    """Weights' dtype of a backbone that does not train.

    ``auto`` is the checkpoint's own on accelerators and float32 on a CPU, where half precision
    is slow and gains nothing.
    """
    return "float32" if dtype == "auto" and device.type == "cpu" else dtype


def trained_dtype(dtype: str) -> str:
    """Weights' dtype of a model that trains whole: float32, also where the recipe says bfloat16.

    AdamW's small steps vanish in bfloat16 weights. The forwards then run in bfloat16 autocast, and
    the result is saved in bfloat16.
    """
    return "float32" if dtype in ("auto", "bfloat16") else dtype


def saved_dtype(dtype: str, original: Any) -> torch.dtype:
    """Dtype in which a model that trained whole is saved: the checkpoint's own, or bfloat16."""
    if dtype == "bfloat16":
        return torch.bfloat16
    return original if isinstance(original, torch.dtype) else torch.float32


def uses_autocast(dtype: str, device: torch.device) -> bool:
    """Whether training forwards run in bfloat16 autocast."""
    if device.type != "cuda":
        return dtype == "bfloat16"
    return dtype not in ("float32", "float16") and bool(torch.cuda.is_bf16_supported())
