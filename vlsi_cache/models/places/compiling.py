"""Compiling a model's blocks."""

from __future__ import annotations

import torch

from vlsi_cache.models.decoder import Decoder

__all__ = ["compile_blocks"]


def compile_blocks(decoder: Decoder) -> None:
    """Compile the forward of every block.

    The calls around it stay as they are. A compiled call would not see the hooks that taps come
    from, since they are set later.
    """
    for block in decoder.blocks:
        block.forward = torch.compile(block.forward)
