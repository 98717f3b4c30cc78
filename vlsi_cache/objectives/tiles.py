"""Sizes of the tiles of a [tokens × vocabulary] plane, and products with sums in wide floats."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = [
    "accumulator",
    "chunk_tokens",
    "chunks",
    "gathered_rows",
    "operand_dtype",
    "tile_shape",
    "wide_product",
]

_CPU_TILE = (1024, 2048)
"""Tokens × vocabulary. 8 MiB in float32: tile, head rows and sums stay in the CPU's cache."""
_DEVICE_TILE = (2048, 8192)
"""Tokens × vocabulary. 64 MiB in float32: products long enough to hide their kernels' launches."""
_CPU_ROWS = 1 << 24
"""Logits of whole rows in memory at once: 64 MiB in float32."""
_DEVICE_ROWS = 1 << 28
"""Logits of whole rows in memory at once: 1 GiB in float32, and half of it for their softmax. A GPU
then multiplies 1,024 tokens at once with a head of 150,000, enough to be bound by arithmetic."""
_CPU_GATHERED = 1 << 21
"""Elements of head rows copied at once. 8 MiB in float32 stay in the CPU's cache."""
_DEVICE_GATHERED = 1 << 26
"""Elements of head rows copied at once. 256 MiB in float32 need few launches."""


def tile_shape(device: torch.device) -> tuple[int, int]:
    """Tokens and vocabulary entries of one tile. It depends on the device alone."""
    return _CPU_TILE if device.type == "cpu" else _DEVICE_TILE


def chunk_tokens(vocab_size: int, device: torch.device, planes: int = 1) -> int:
    """Number of tokens whose whole rows of logits may be in memory at once.

    On a device it is a power of two, because products with few rows more take as long as with
    twice as many.

    Args:
        vocab_size: columns of a row.
        device: the device of the logits.
        planes: how many such rows a token has on a device.
    """
    if device.type == "cpu":
        return max(1, _CPU_ROWS // vocab_size)
    return 1 << max(0, (_DEVICE_ROWS // (planes * vocab_size)).bit_length() - 1)


def gathered_rows(device: torch.device, width: int) -> int:
    """Number of rows of ``width`` elements that may be copied at once."""
    elements = _CPU_GATHERED if device.type == "cpu" else _DEVICE_GATHERED
    return max(1, elements // width)


def chunks(length: int, size: int) -> Iterator[slice]:
    """Cover ``length`` with consecutive slices of at most ``size``."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums over values of ``dtype``: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def operand_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of the operands in products with the head's rows.

    CUDA's matrix units multiply in low precision and add in float32, so there it is the head's own
    dtype. Elsewhere PyTorch would also round the sums, so the head's rows are widened.
    """
    if weight.device.type == "cuda" and torch.version.cuda is not None:
        return weight.dtype
    return accumulator(weight.dtype)


def wide_product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """``left @ right`` with operands cast to ``dtype``. The result is not rounded to it.

    Args:
        left: left operand, ``[n, j]``.
        right: right operand, ``[j, m]``.
        dtype: dtype of the operands, from ``operand_dtype``.

    Returns:
        ``[n, m]`` in ``accumulator(dtype)``.
    """
    left = left.to(dtype)
    right = right.to(dtype)
    if dtype == accumulator(dtype):
        return left @ right
    # CUDA can return float32 sums of products in low precision.
    if left.device.type == "cuda":
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()
