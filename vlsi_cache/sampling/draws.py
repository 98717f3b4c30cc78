"""Systematic draws from dense weights, and draws that a tap shares with the tap after it.

Shape suffixes: N tokens, V vocabulary, n draws, G entries of one stretch of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

__all__ = [
    "LEAST_SCALE",
    "STRETCH",
    "Drawn",
    "DrawnTail",
    "columns_of",
    "coupled_draws",
    "coupled_tail_draws",
    "draws_from",
    "point",
    "stretch_sums",
    "systematic_draws",
]

STRETCH: Final = 128
"""G. A pointer finds its stretch of so many neighbours by the stretches' sums, and then its entry
inside. A running sum over the whole vocabulary would cost more than everything else together."""
LEAST_SCALE: Final = 1e-12
"""Stands for 0 where nothing new is drawn, so that it may be divided by."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """The draws of one tap, and the distribution they come from."""

    probability: Tensor
    """[N, V], rows sum to 1."""
    positions: Tensor
    """[N, n] long, ascending, with repetition: columns of ``probability``."""


@dataclass(frozen=True, slots=True)
class DrawnTail:
    """The draws of one tap from the tail of a distribution, as many as each row asks for."""

    expected: Tensor
    """[N, V], how often each entry is drawn on average. A row sums to its number of draws."""
    counts: Tensor
    """[N] long, the number of draws of each row, at most n."""
    positions: Tensor
    """[N, n] long, with repetition: columns of ``expected``. Those from the count on are −1."""


def systematic_draws(weights: Tensor, uniforms: Tensor, num_draws: int) -> Tensor:
    """Draw systematically: every entry ``num_draws × its share`` times on average.

    Evenly spaced pointers with one random offset per row have less variance than independent
    draws, the less the closer similar entries lie, and stay unbiased.

    Args:
        weights: [N, V], not negative.
        uniforms: [N] in [0, 1). Running sums take its dtype.
        num_draws: pointers per row, n.

    Returns:
        [N, n] long, ascending. An entry without weight is never drawn. The exceptions are rows
        without any weight and rows of NaN, where the draws have no meaning.
    """
    return draws_from(weights, stretch_sums(weights), uniforms, num_draws)


def coupled_draws(
    probability: Tensor,
    uniforms: Tensor,
    num_draws: int,
    later: Drawn | None = None,
    scratch: Tensor | None = None,
) -> Drawn:
    """Draw what can be shared with the draws of another distribution, and stay unbiased alone.

    With p this distribution and q the other, every draw i of q stays with probability
    min(1, p_i / q_i). Lost draws are drawn again from (p − q)₊, both in one systematic pass.
    Over the other's draws the mean count of i is then n · min(p_i, q_i) + n · (p_i − q_i)₊
    = n · p_i (maximal coupling; Thorisson, Coupling, Stationarity, and Regeneration, 2000).

    Args:
        probability: [N, V], rows sum to 1.
        uniforms: [N] in [0, 1), independent of those that the other draws were made with.
        num_draws: draws per row, n.
        later: the other distribution and its n draws. None for draws of their own.
        scratch: [N, V], overwritten. None to allocate it.
    """
    if later is None:
        return Drawn(probability, systematic_draws(probability, uniforms, num_draws))
    kept = later.positions
    stays = probability.gather(1, kept) / later.probability.gather(1, kept)
    stays.clamp_(max=1.0)
    weights = torch.sub(probability, later.probability, out=scratch).relu_()
    sums = stretch_sums(weights)
    fresh = sums.sum(1, keepdim=True, dtype=uniforms.dtype)
    lost = num_draws - stays.sum(1, keepdim=True, dtype=uniforms.dtype)
    # One pass draws from both: an entry weighs (p − q)₊ · lost / fresh, and each kept draw adds its
    # chance to stay. All is divided by that scale, which saves a pass over the vocabulary: then
    # (p − q)₊ remains as it is, and only the n kept draws change.
    scale = torch.where(fresh > 0, lost / fresh, 0.0).clamp_min(LEAST_SCALE)
    scaled = (stays / scale).to(weights.dtype)
    weights.scatter_add_(1, kept, scaled)
    sums.scatter_add_(1, kept // STRETCH, scaled)
    return Drawn(probability, draws_from(weights, sums, uniforms, num_draws))


def coupled_tail_draws(
    expected: Tensor,
    counts: Tensor,
    uniforms: Tensor,
    num_draws: int,
    later: DrawnTail | None = None,
    scratch: Tensor | None = None,
) -> DrawnTail:
    """Draw as ``coupled_draws`` does, where every row has its own number of draws.

    With a the expected draws of this tap and b those of the other, let c = min(1, Σa / Σb). Every
    draw i of the other stays with probability c · min(1, a_i / (c · b_i)). The remaining ones are
    drawn from (a − c · b)₊. Over the other's draws the mean count of i is then min(a_i, c · b_i) +
    (a_i − c · b_i)₊ = a_i. At most Σa draws stay on average, so never a negative number remains.

    Args:
        expected: [N, V], rows sum to ``counts``.
        counts: [N] long, the number of draws of each row. It may depend on all but the draws.
        uniforms: [N] in [0, 1), independent of all that the other draws and the counts came from.
        num_draws: most draws of a row, n.
        later: the other distribution and its draws. None for draws of their own.
        scratch: [N, V], overwritten. None to allocate it.
    """
    weights, sums = expected, stretch_sums(expected)
    if later is not None:
        ratio = (counts / later.counts.clamp(min=1)).clamp(max=1.0).to(expected.dtype)[:, None]
        weights = torch.mul(later.expected, -ratio, out=scratch).add_(expected).relu_()
        sums = stretch_sums(weights)
        kept = later.positions.clamp(min=0)
        chance = expected.gather(1, kept) / later.expected.gather(1, kept)
        stays = torch.minimum(chance, ratio).masked_fill_(later.positions < 0, 0.0)
        fresh = sums.sum(1, keepdim=True, dtype=uniforms.dtype)
        lost = counts[:, None] - stays.sum(1, keepdim=True, dtype=uniforms.dtype)
        scale = torch.where(fresh > 0, lost / fresh, 0.0).clamp_min(LEAST_SCALE)
        scaled = (stays / scale).to(weights.dtype)
        weights.scatter_add_(1, kept, scaled)
        sums.scatter_add_(1, kept // STRETCH, scaled)
    drawn = draws_from(weights, sums, uniforms, num_draws, counts)
    steps = torch.arange(num_draws, device=counts.device)
    return DrawnTail(expected, counts, drawn.masked_fill(steps >= counts[:, None], -1))


def stretch_sums(weights: Tensor) -> Tensor:
    """The weight of every stretch, [N, ⌈V / G⌉]. The last stretch may be shorter."""
    whole = weights.shape[1] // STRETCH * STRETCH
    sums: Tensor = weights[:, :whole].unflatten(1, (-1, STRETCH)).sum(-1)
    if whole == weights.shape[1]:
        return sums
    return torch.cat([sums, weights[:, whole:].sum(1, keepdim=True)], dim=1)


def draws_from(
    weights: Tensor, sums: Tensor, uniforms: Tensor, num_draws: int, counts: Tensor | None = None
) -> Tensor:
    """Draw systematically, given the sums of the stretches. See ``point``."""
    last = weights.shape[1] - 1
    stretch, aims = point(sums, uniforms, num_draws, counts)
    columns = columns_of(stretch)
    entries = weights.gather(1, columns.flatten(1).clamp(max=last)).view_as(columns)
    # The last stretch may reach beyond the vocabulary, where nothing has weight.
    running = entries.masked_fill_(columns > last, 0.0).cumsum(-1, dtype=uniforms.dtype)
    # <= and not <: as in ``point``, an edge is passed.
    passed = (running <= aims[..., None] * running[..., -1:]).sum(-1)
    return (stretch * STRETCH + passed).clamp_(max=last)


def columns_of(stretch: Tensor) -> Tensor:
    """Return the columns of stretches ``[N, n]``, ``[N, n, G]``."""
    return stretch[..., None] * STRETCH + torch.arange(STRETCH, device=stretch.device)


def point(
    sums: Tensor, uniforms: Tensor, num_draws: int, counts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Place the pointers of systematic draws in the stretches.

    Pointer j stands at ``(uniform + j) / n`` of the row's weight. It draws the first entry whose
    running sum exceeds it.

    Args:
        sums: ``[N, ⌈V / G⌉]``, the weight of every stretch.
        uniforms: as in ``systematic_draws``.
        num_draws: pointers per row, n.
        counts: ``[N]`` long, an n for each row, at most ``num_draws``. The draws beyond it have no
            meaning.

    Returns:
        The stretch of every pointer ``[N, n]``, and how far the pointer stands inside, as a share
        of the stretch's weight in [0, 1).
    """
    below_1 = 1 - torch.finfo(uniforms.dtype).eps
    edges = sums.cumsum(1, dtype=uniforms.dtype)
    steps = torch.arange(num_draws, device=sums.device, dtype=uniforms.dtype)
    # Rounding may lift the last pointer to 1, behind the last entry with weight.
    spacing = num_draws if counts is None else counts[:, None].clamp(min=1)
    shares = ((uniforms[:, None] + steps) / spacing).clamp_(max=below_1)
    pointers = shares * edges[:, -1:]
    # With right=True a pointer on an edge passes it, and so skips stretches without weight.
    stretch = torch.searchsorted(edges, pointers, right=True).clamp_(max=sums.shape[1] - 1)
    width = sums.gather(1, stretch)
    # A share and not a distance: the sum of the stretch's entries, taken again by the caller,
    # rounds differently from its width, and the share fits both.
    inside = (pointers - (edges.gather(1, stretch) - width)) / width
    return stretch, inside.clamp_(0.0, below_1)
