"""The kernels that serve the objectives, and where they do.

Triton is imported where a kernel runs, because machines without a GPU may lack it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlsi_cache.kernels import has_kernels
from vlsi_cache.models import Head

__all__ = ["serves", "softmax_rows", "takes", "weighted_rows"]


def takes(weight: Tensor) -> bool:
    """Report whether the kernels read a head's rows: in bfloat16, each row contiguous."""
    is_plain = weight.dtype == torch.bfloat16 and weight.stride(1) == 1
    return is_plain and has_kernels(weight.device)


def serves(head: Head) -> bool:
    """Report whether whole rows of a head's logits go through the kernels.

    A head with a bias or a transform of its logits goes tile by tile.
    """
    return takes(head.weight) and head.bias is None and head.transform.is_identity


def softmax_rows(
    logits: Tensor, vocab_size: int, dtype: torch.dtype, scales: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Take the softmax of rows. See ``kernels.rows.softmax_rows``."""
    from vlsi_cache.kernels import rows

    return rows.softmax_rows(logits, vocab_size, dtype, scales)


def weighted_rows(
    weight: Tensor, token_ids: Tensor, factors: Tensor, base: Tensor, base_factors: Tensor
) -> Tensor:
    """Sum some rows of a head. See ``kernels.rows.weighted_rows``."""
    from vlsi_cache.kernels import rows

    return rows.weighted_rows(weight, token_ids, factors, base, base_factors)
