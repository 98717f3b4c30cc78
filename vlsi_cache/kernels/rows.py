# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc, no-untyped-call"
"""Kernels that take whole rows of logits: softmax in one go, and weighted sums of a head's rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["softmax_rows", "weighted_rows"]

_BLOCK = 4096
"""Columns of a row that a program holds at once."""
_LOWEST = tl.constexpr(-1e38)
"""Stands for −∞, whose difference from itself is no number."""


def softmax_rows(
    logits: Tensor, vocab_size: int, dtype: torch.dtype, scales: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Take the softmax of every row, in two readings and one writing.

    Args:
        logits: ``[N, W]`` float32, contiguous. Columns from ``vocab_size`` on are padding.
        vocab_size: V ≤ W.
        dtype: dtype of the probabilities.
        scales: ``[N]``, a factor on each row's probabilities; 1 if None.

    Returns:
        The probabilities ``[N, W]``, 0 in the padding, and ``log Σ exp`` of the rows, ``[N]``
        float32. A row with NaN or +∞ gives NaN.
    """
    probabilities = torch.empty_like(logits, dtype=dtype)
    log_mass = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    with torch.cuda.device_of(logits):
        _softmax_rows[(len(logits),)](
            logits,
            probabilities,
            log_mass,
            log_mass if scales is None else scales.float().contiguous(),
            vocab_size,
            logits.shape[1],
            has_scales=scales is not None,
            block=min(_BLOCK, triton.next_power_of_2(logits.shape[1])),
            num_warps=8,
        )
    return probabilities, log_mass


@triton.jit
def _softmax_rows(
    logits,
    probabilities,
    log_mass,
    scales,
    vocab_size,
    width,
    has_scales: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, block)
    # every lane keeps its own running maximum: one reduction at the end, and none in the loop
    highest = tl.full([block], _LOWEST, tl.float32)
    total = tl.zeros([block], tl.float32)
    for start in range(0, vocab_size, block):
        columns = start + lanes
        inside = columns < vocab_size
        value = tl.load(logits + row * width + columns, mask=inside, other=float("-inf"))
        raised = tl.maximum(highest, value)
        total = total * tl.exp(highest - raised) + tl.exp(value - raised)
        highest = raised
    most = tl.max(highest, 0)
    normaliser = most + tl.log(tl.sum(total * tl.exp(highest - most), 0))
    tl.store(log_mass + row, normaliser)
    scale = 1.0
    if has_scales:
        scale = tl.load(scales + row)
    for start in range(0, width, block):
        columns = start + lanes
        inside = columns < vocab_size
        value = tl.load(logits + row * width + columns, mask=inside, other=float("-inf"))
        share = tl.exp(value - normaliser) * scale
        kept = share.to(probabilities.dtype.element_ty)
        tl.store(probabilities + row * width + columns, kept, mask=columns < width)


def weighted_rows(
    weight: Tensor, token_ids: Tensor, factors: Tensor, base: Tensor, base_factors: Tensor
) -> Tensor:
    """Sum some rows of a head for every token: ``Σ_e f_e · W[id_e] + b · base``.

    Args:
        weight: ``[V, D]``, rows contiguous.
        token_ids: ``[N, E]`` long.
        factors: ``[N, E]``, f.
        base: ``[N, D]``, what is added to the sum.
        base_factors: ``[N]``, b.

    Returns:
        ``[N, D]`` float32.
    """
    num_tokens, num_entries = token_ids.shape
    size = weight.shape[1]
    result = torch.empty(num_tokens, size, dtype=torch.float32, device=weight.device)
    with torch.cuda.device_of(weight):
        block = min(1024, triton.next_power_of_2(size))
        _weighted_rows[(num_tokens, triton.cdiv(size, block))](
            weight,
            token_ids.contiguous(),
            factors.float().contiguous(),
            base.float().contiguous(),
            base_factors.float().contiguous(),
            result,
            num_entries,
            size,
            weight.stride(0),
            block=block,
        )
    return result


@triton.jit
def _weighted_rows(
    weight,
    token_ids,
    factors,
    base,
    base_factors,
    result,
    num_entries,
    size,
    stride,
    block: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    inside = columns < size
    total = tl.load(base + token * size + columns, mask=inside, other=0.0)
    total *= tl.load(base_factors + token)
    for entry in range(num_entries):
        row = tl.load(token_ids + token * num_entries + entry)
        factor = tl.load(factors + token * num_entries + entry)
        part = tl.load(weight + row * stride + columns, mask=inside, other=0.0)
        total += factor * part.to(tl.float32)
    tl.store(result + token * size + columns, total, mask=inside)
