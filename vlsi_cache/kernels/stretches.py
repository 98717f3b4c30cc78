# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc, no-untyped-call"
"""Kernels that read logits once, and leave sums over stretches of the vocabulary.

A stretch is G neighbouring columns. Draws and likeliest tokens are found from the stretches'
figures, so no plane of probabilities is ever written.

Shape suffixes: N tokens, V vocabulary, S = ⌈V / G⌉ stretches, k likeliest tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["KeptDraws", "Moments", "ScaledTail", "drawn_entries", "excess_sums", "stretch_moments"]

_TOGETHER = 32
"""Stretches of one program."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Figures of every stretch of some rows of logits z, each ``[N, S]`` float32."""

    highest: Tensor
    """Maximum M of z."""
    total: Tensor
    """Σ exp(z − M)."""
    weighted: Tensor
    """Σ z · exp(z − M)."""


@dataclass(frozen=True, slots=True)
class ScaledTail:
    """``scale · exp(z − log_mass)`` without some columns: it need not be in memory."""

    logits: Tensor
    """``[N, V]``, any float dtype, columns contiguous."""
    log_mass: Tensor
    """``[N]`` float32, log Σ exp z."""
    scale: Tensor
    """``[N]`` float32."""
    left_out: Tensor
    """``[N, k]`` long, the columns that count as 0."""

    def at(self, columns: Tensor) -> Tensor:
        """Return the values at some columns ``[N, *]``, float32."""
        flat = columns.flatten(1)
        values = (self.logits.gather(1, flat).float() - self.log_mass[:, None]).exp_()
        values *= self.scale[:, None]
        for left_out in self.left_out.T:  # one by one: all together are k times as large
            values.masked_fill_(flat == left_out[:, None], 0.0)
        return values.view(columns.shape)


@dataclass(frozen=True, slots=True)
class KeptDraws:
    """Draws of another tail, each of which adds a weight to its entry."""

    tail: ScaledTail
    """The other tail."""
    ratio: Tensor
    """``[N]`` float32, factor of the other tail."""
    positions: Tensor
    """``[N, n]`` long."""
    weights: Tensor
    """``[N, n]`` float32, 0 for a draw that is not kept."""


def stretch_moments(logits: Tensor, stretch: int) -> Moments:
    """Read every row once.

    Args:
        logits: ``[N, V]``, any float dtype, columns contiguous.
        stretch: G, a power of two.

    Returns:
        The moments. A stretch with NaN or +∞ has a total of NaN.
    """
    num_tokens, vocab_size = logits.shape
    count = triton.cdiv(vocab_size, stretch)
    found = torch.empty(3, num_tokens, count, dtype=torch.float32, device=logits.device)
    with torch.cuda.device_of(logits):
        _stretch_moments[(num_tokens, triton.cdiv(count, _TOGETHER))](
            *(logits, *found),
            *(vocab_size, logits.stride(0), count),
            stretch=stretch,
            together=_TOGETHER,
            num_warps=8,
        )
    return Moments(*found)


@triton.jit
def _stretch_moments(
    logits,
    highest,
    total,
    weighted,
    vocab_size,
    stride,
    count,
    stretch: tl.constexpr,
    together: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    number = tl.program_id(1) * together + tl.arange(0, together)
    columns = number[:, None] * stretch + tl.arange(0, stretch)[None, :]
    inside = columns < vocab_size
    value = tl.load(logits + token * stride + columns, mask=inside, other=float("-inf"))
    value = value.to(tl.float32)
    most = tl.max(value, 1)
    base = tl.where(most == float("-inf"), 0.0, most)
    share = tl.exp(value - base[:, None])
    place = token * count + number
    tl.store(highest + place, most, mask=number < count)
    tl.store(total + place, tl.sum(share, 1), mask=number < count)
    product = tl.where(share == 0.0, 0.0, value * share)  # −∞ · 0 is no number
    tl.store(weighted + place, tl.sum(product, 1), mask=number < count)


def excess_sums(own: ScaledTail, other: ScaledTail, ratio: Tensor, stretch: int) -> Tensor:
    """Sum ``(own − ratio · other)₊`` over every stretch.

    Args:
        own: one tail.
        other: another, over the same columns.
        ratio: ``[N]`` float32.
        stretch: G, a power of two.

    Returns:
        ``[N, S]`` float32.
    """
    num_tokens, vocab_size = own.logits.shape
    count = triton.cdiv(vocab_size, stretch)
    sums = torch.empty(num_tokens, count, dtype=torch.float32, device=own.logits.device)
    with torch.cuda.device_of(own.logits):
        _excess_sums[(num_tokens, triton.cdiv(count, _TOGETHER))](
            *(own.logits, own.log_mass, own.scale, own.left_out.contiguous()),
            *(other.logits, other.log_mass, other.scale * ratio, other.left_out.contiguous()),
            *(sums, vocab_size, own.logits.stride(0), other.logits.stride(0), count),
            num_out=own.left_out.shape[1],
            stretch=stretch,
            together=_TOGETHER,
            num_warps=8,
        )
    return sums


@triton.jit
def _excess_sums(
    own,
    own_log_mass,
    own_scale,
    own_out,
    other,
    other_log_mass,
    other_scale,
    other_out,
    sums,
    vocab_size,
    own_stride,
    other_stride,
    count,
    num_out,
    stretch: tl.constexpr,
    together: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    number = tl.program_id(1) * together + tl.arange(0, together)
    columns = number[:, None] * stretch + tl.arange(0, stretch)[None, :]
    inside = columns < vocab_size
    first = tl.load(own + token * own_stride + columns, mask=inside, other=float("-inf"))
    first = tl.exp(first.to(tl.float32) - tl.load(own_log_mass + token))
    first *= tl.load(own_scale + token)
    second = tl.load(other + token * other_stride + columns, mask=inside, other=float("-inf"))
    second = tl.exp(second.to(tl.float32) - tl.load(other_log_mass + token))
    second *= tl.load(other_scale + token)
    for index in range(num_out):
        first = tl.where(columns == tl.load(own_out + token * num_out + index), 0.0, first)
        second = tl.where(columns == tl.load(other_out + token * num_out + index), 0.0, second)
    excess = tl.maximum(first - second, 0.0)
    place = token * count + number
    tl.store(sums + place, tl.sum(excess, 1), mask=number < count)


def drawn_entries(
    own: ScaledTail, stretch: Tensor, aims: Tensor, size: int, kept: KeptDraws | None
) -> Tensor:
    """Return the first entry of each stretch whose running sum exceeds its aim, ``[N, n]`` long.

    The entries are those of ``own``; with ``kept`` they are ``(own − ratio · other)₊`` and the kept
    draws' weights. Running sums are in float64.

    Args:
        own: the tail.
        stretch: ``[N, n]`` long.
        aims: ``[N, n]`` float64 in [0, 1), as shares of the stretch's sum.
        size: G, a power of two.
        kept: the other tail and its draws, if any.
    """
    num_tokens, num_draws = stretch.shape
    result = torch.empty_like(stretch)
    other = own if kept is None else kept.tail
    scale = other.scale if kept is None else other.scale * kept.ratio
    positions = stretch if kept is None else kept.positions.contiguous()
    weights = aims if kept is None else kept.weights.contiguous()
    with torch.cuda.device_of(own.logits):
        _drawn_entries[(num_tokens, num_draws)](
            *(own.logits, own.log_mass, own.scale, own.left_out.contiguous()),
            *(other.logits, other.log_mass, scale, other.left_out.contiguous()),
            *(positions, weights, stretch.contiguous(), aims.contiguous(), result),
            *(own.logits.shape[1], own.logits.stride(0), other.logits.stride(0), num_draws),
            num_kept=0 if kept is None else positions.shape[1],
            num_out=own.left_out.shape[1],
            size=size,
            num_warps=1,
        )
    return result


@triton.jit
def _drawn_entries(
    own,
    own_log_mass,
    own_scale,
    own_out,
    other,
    other_log_mass,
    other_scale,
    other_out,
    positions,
    weights,
    stretches,
    aims,
    result,
    vocab_size,
    own_stride,
    other_stride,
    num_draws,
    num_kept: tl.constexpr,
    num_out,
    size: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    place = token * num_draws + tl.program_id(1)
    stretch = tl.load(stretches + place)
    columns = stretch * size + tl.arange(0, size)
    inside = columns < vocab_size
    entry = tl.load(own + token * own_stride + columns, mask=inside, other=float("-inf"))
    entry = tl.exp(entry.to(tl.float32) - tl.load(own_log_mass + token))
    entry *= tl.load(own_scale + token)
    for index in range(num_out):
        entry = tl.where(columns == tl.load(own_out + token * num_out + index), 0.0, entry)
    if num_kept > 0:
        less = tl.load(other + token * other_stride + columns, mask=inside, other=float("-inf"))
        less = tl.exp(less.to(tl.float32) - tl.load(other_log_mass + token))
        less *= tl.load(other_scale + token)
        for index in range(num_out):
            less = tl.where(columns == tl.load(other_out + token * num_out + index), 0.0, less)
        entry = tl.maximum(entry - less, 0.0)
        for index in range(num_kept):
            weight = tl.load(weights + token * num_kept + index)
            position = tl.load(positions + token * num_kept + index)
            entry += tl.where(columns == position, weight, 0.0)
    running = tl.cumsum(entry.to(tl.float64), 0)
    aim = tl.load(aims + place) * tl.max(running, 0)
    passed = tl.sum((running <= aim).to(tl.int64), 0)
    tl.store(result + place, stretch * size + passed)
