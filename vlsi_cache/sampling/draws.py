"""Systematic draws from dense weights, and draws that one tap hands on to the tap before it.

Shape suffixes: N tokens, V vocabulary, n draws, B entries of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

__all__ = ["Drawn", "coupled_draws", "systematic_draws"]

_BLOCK: Final = 128
"""Entries whose sum is looked at before they are: one running sum over the vocabulary costs more
than everything else together."""
_LEAST_SCALE: Final = 1e-12
"""Stands for 0 where nothing is drawn anew, so that it may be divided by."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What one tap drew, and from what."""

    probability: Tensor
    """[N, V], rows sum to 1."""
    positions: Tensor
    """[N, n] long, ascending, with repetition: columns of ``probability``."""


def systematic_draws(weights: Tensor, uniforms: Tensor, num_draws: int) -> Tensor:
    """Systematic sampling: every entry is drawn ``num_draws × its share`` times on average.

    Evenly spaced pointers with one random offset per row have less variance than independent
    draws, the less the closer similar entries lie, and stay unbiased.

    Args:
        weights: [N, V], not negative.
        uniforms: [N] in [0, 1); its dtype is that of the running sums.
        num_draws: pointers per row, n.

    Returns:
        [N, n] long, ascending. Entries without weight are never drawn, except from a row that has
        no weight at all, or one that is not a number, where the draws stand for nothing.
    """
    return _draws(weights, _block_sums(weights), uniforms, num_draws)


def coupled_draws(
    probability: Tensor,
    uniforms: Tensor,
    num_draws: int,
    later: Drawn | None = None,
    scratch: Tensor | None = None,
) -> Drawn:
    """Draws that share what they can with those of another distribution, and are unbiased alone.

    With p this distribution and q the other: every draw i of q stays with probability
    min(1, p_i / q_i), and what is lost is drawn anew from (p − q)₊, the two in one systematic
    pass. Over the other's draws the mean count of i is then n · min(p_i, q_i) + n · (p_i − q_i)₊
    = n · p_i (maximal coupling; Thorisson, Coupling, Stationarity, and Regeneration, 2000).

    Args:
        probability: [N, V], rows sum to 1.
        uniforms: [N] in [0, 1), independent of those that the other draws were made with.
        num_draws: n.
        later: the other distribution and its n draws; None to draw afresh.
        scratch: [N, V], overwritten; made anew if None.

    Returns:
        These draws.
    """
    if later is None:
        return Drawn(probability, systematic_draws(probability, uniforms, num_draws))
    kept = later.positions
    stays = probability.gather(1, kept) / later.probability.gather(1, kept)
    stays.clamp_(max=1.0)
    weights = torch.sub(probability, later.probability, out=scratch).relu_()
    sums = _block_sums(weights)
    fresh = sums.sum(1, keepdim=True, dtype=uniforms.dtype)
    lost = num_draws - stays.sum(1, keepdim=True, dtype=uniforms.dtype)
    # weights are in units of this scale, which saves a pass over the vocabulary
    scale = torch.where(fresh > 0, lost / fresh, 0.0).clamp_min(_LEAST_SCALE)
    scaled = (stays / scale).to(weights.dtype)
    weights.scatter_add_(1, kept, scaled)
    sums.scatter_add_(1, kept // _BLOCK, scaled)
    return Drawn(probability, _draws(weights, sums, uniforms, num_draws))


def _block_sums(weights: Tensor) -> Tensor:
    """[N, ⌈V / B⌉]."""
    whole = weights.shape[1] // _BLOCK * _BLOCK
    sums: Tensor = weights[:, :whole].unflatten(1, (-1, _BLOCK)).sum(-1)
    if whole == weights.shape[1]:
        return sums
    return torch.cat([sums, weights[:, whole:].sum(1, keepdim=True)], dim=1)


def _draws(weights: Tensor, sums: Tensor, uniforms: Tensor, num_draws: int) -> Tensor:
    vocab_size, below_1 = weights.shape[1], 1 - torch.finfo(uniforms.dtype).eps
    edges = sums.cumsum(1, dtype=uniforms.dtype)
    steps = torch.arange(num_draws, device=weights.device, dtype=uniforms.dtype)
    shares = ((uniforms[:, None] + steps) / num_draws).clamp_(max=below_1)
    pointers = shares * edges[:, -1:]
    # right=True skips what has no weight
    block = torch.searchsorted(edges, pointers, right=True).clamp_(max=sums.shape[1] - 1)
    width = sums.gather(1, block)
    inside = (pointers - (edges.gather(1, block) - width)) / width
    places = block[..., None] * _BLOCK + torch.arange(_BLOCK, device=weights.device)
    flat = places.flatten(1).clamp(max=vocab_size - 1)
    entries = weights.gather(1, flat).view_as(places).masked_fill_(places >= vocab_size, 0.0)
    running = entries.cumsum(-1, dtype=uniforms.dtype)
    aim = inside.clamp_(0.0, below_1)[..., None] * running[..., -1:]
    passed = (running <= aim).sum(-1)
    return (block * _BLOCK + passed).clamp_(max=vocab_size - 1)
