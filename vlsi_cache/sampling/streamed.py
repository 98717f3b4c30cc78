"""The record of ``draw_together`` from logits that kernels read, without a plane of probabilities.

``draw_together`` writes and reads some fifteen planes [N × V] for each tap. Here the logits are
read twice: once for the figures of every stretch of the vocabulary, and once, beside those of the
tap after this one, for what the draws come from. All else touches the few stretches where a
likeliest token or a draw lies.

Shape suffixes: N tokens, V vocabulary, G entries and S stretches, k likeliest tokens, n draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlsi_cache.sampling.draws import LEAST_SCALE, STRETCH, columns_of, point
from vlsi_cache.sampling.sparsify import Kept, rounded
from vlsi_cache.sampling.together import random_levels

if TYPE_CHECKING:
    from vlsi_cache.kernels.stretches import Moments, ScaledTail

__all__ = ["StreamedTail", "draw_streamed"]


@dataclass(frozen=True, slots=True)
class StreamedTail:
    """The draws of one tap, and the expected draws that they come from. See ``DrawnTail``."""

    expected: ScaledTail
    """How often each entry is drawn on average."""
    counts: Tensor
    """``[N]`` long, the number of draws of each row."""
    positions: Tensor
    """``[N, n]`` long, −1 from the count on."""


@torch.no_grad()
def draw_streamed(
    logits: Tensor, labels: Tensor, uniforms: Tensor, *, m: int, later: StreamedTail | None
) -> tuple[Kept, StreamedTail]:
    """Keep the k likeliest tokens, and those of m draws that are none of them.

    Args, record and draws are those of ``draw_together``, to rounding. The returned tail holds on
    to the logits, which may be of any float dtype.
    """
    from vlsi_cache.kernels.stretches import ScaledTail, stretch_moments

    places, dice, level_dice = uniforms[:, 0], uniforms[:, 1], uniforms[:, 2:]
    moments = stretch_moments(logits, STRETCH)
    log_mass, entropy = _log_mass_and_entropy(moments)
    label_log_prob = logits.gather(1, labels[:, None])[:, 0].float() - log_mass
    top, top_ids = _likeliest(logits, moments.highest, log_mass, level_dice.shape[1])
    tail = ScaledTail(logits, log_mass, torch.ones_like(log_mass), top_ids)
    sums = moments.total * (moments.highest - log_mass[:, None]).exp()
    stretch = top_ids // STRETCH
    # The stretches of the likeliest are summed again without them: a difference would lose digits.
    sums.scatter_(1, stretch, _entries(tail, stretch).sum(-1))
    mass = sums.sum(1, keepdim=True, dtype=uniforms.dtype)
    levels, stored = random_levels(top.to(uniforms.dtype), mass, level_dice)
    counts = (m * stored + dice).floor().clamp_(max=m).long()
    scale = (counts / mass[:, 0].clamp_min(torch.finfo(sums.dtype).tiny)).to(sums.dtype)
    tail = ScaledTail(logits, log_mass, scale, top_ids)
    sums *= scale[:, None]
    positions = _coupled(tail, sums, counts, places, m, later)
    drawn = StreamedTail(tail, counts, positions)
    ids = torch.cat([top_ids, torch.where(drawn.positions < 0, top_ids[:, :1], drawn.positions)], 1)
    return Kept(ids, levels, *rounded(entropy, label_log_prob, places)), drawn


def _coupled(
    expected: ScaledTail,
    sums: Tensor,
    counts: Tensor,
    uniforms: Tensor,
    num_draws: int,
    later: StreamedTail | None,
) -> Tensor:
    """Draw as ``coupled_tail_draws`` does: ``[N, n]`` columns, −1 from the count on.

    ``sums`` are those of the expected draws over stretches, ``[N, S]``.
    """
    from vlsi_cache.kernels.stretches import KeptDraws, drawn_entries, excess_sums

    kept = None
    if later is not None:
        ratio = (counts / later.counts.clamp(min=1)).clamp(max=1.0).to(sums.dtype)
        sums = excess_sums(expected, later.expected, ratio, STRETCH)
        positions = later.positions.clamp(min=0)
        chance = expected.at(positions) / later.expected.at(positions)
        stays = torch.minimum(chance, ratio[:, None]).masked_fill_(later.positions < 0, 0.0)
        fresh = sums.sum(1, keepdim=True, dtype=uniforms.dtype)
        lost = counts[:, None] - stays.sum(1, keepdim=True, dtype=uniforms.dtype)
        scale = torch.where(fresh > 0, lost / fresh, 0.0).clamp_min(LEAST_SCALE)
        scaled = (stays / scale).to(sums.dtype)
        sums.scatter_add_(1, positions // STRETCH, scaled)
        kept = KeptDraws(later.expected, ratio, positions, scaled)
    stretch, aims = point(sums, uniforms, num_draws, counts)
    drawn = drawn_entries(expected, stretch, aims, STRETCH, kept)
    drawn.clamp_(max=expected.logits.shape[1] - 1)
    steps = torch.arange(num_draws, device=counts.device)
    return drawn.masked_fill_(steps >= counts[:, None], -1)


def _log_mass_and_entropy(moments: Moments) -> tuple[Tensor, Tensor]:
    """Return log Σ exp z and H = log Σ exp z − Σ p z, ``[N]`` each."""
    highest = moments.highest.amax(1, keepdim=True)
    shares = (moments.highest - highest).exp_()
    total = (moments.total * shares).sum(1)
    log_mass = highest[:, 0] + total.log()
    return log_mass, log_mass - (moments.weighted * shares).sum(1) / total


def _likeliest(logits: Tensor, highest: Tensor, log_mass: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the probabilities of the k likeliest tokens ``[N, k]`` and their columns.

    The k stretches with the greatest maxima hold them, as in ``likeliest_tokens``.
    """
    last = logits.shape[1] - 1
    stretch = highest.topk(min(k, highest.shape[1]), dim=-1).indices
    columns = columns_of(stretch).flatten(1)
    values = logits.gather(1, columns.clamp(max=last)).float()
    found = values.masked_fill_(columns > last, -torch.inf).topk(k, dim=-1)
    return (found.values - log_mass[:, None]).exp(), columns.gather(1, found.indices)


def _entries(tail: ScaledTail, stretch: Tensor) -> Tensor:
    """Return a tail's values in stretches ``[N, n]``, ``[N, n, G]``; 0 beyond the vocabulary."""
    columns, last = columns_of(stretch), tail.logits.shape[1] - 1
    return tail.at(columns.clamp(max=last)).masked_fill_(columns > last, 0.0)
