"""Kernels in Triton, where torch would take many passes over a [tokens × vocabulary] plane.

They serve NVIDIA's devices. Each has a plain form in torch beside it, which everything else runs
and which the tests compare with.
"""

from __future__ import annotations

import importlib.util
import os

import torch

__all__ = ["has_kernels"]


def has_kernels(device: torch.device) -> bool:
    """Report whether the kernels run on a device: CUDA's with Triton installed.

    ``VLSI_CACHE_KERNELS=0`` in the environment turns them off.
    """
    return (
        device.type == "cuda"
        and torch.version.cuda is not None
        and os.environ.get("VLSI_CACHE_KERNELS") != "0"
        and importlib.util.find_spec("triton") is not None
    )
