"""One tap's record with its likeliest tokens and draws together.

The draws are those of the whole distribution. Those of the likeliest tokens say nothing that their
probabilities do not say, so they are not made.

Shape suffixes: N tokens, V vocabulary, k likeliest tokens, m draws.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vlsi_cache.levels import FRACTIONS, TAILS
from vlsi_cache.sampling.draws import DrawnTail, coupled_tail_draws, stretch_sums
from vlsi_cache.sampling.hosting import begin_send
from vlsi_cache.sampling.likeliest import likeliest_tokens
from vlsi_cache.sampling.sparsify import Kept, rounded

__all__ = ["draw_together", "num_uniforms", "random_levels"]


def num_uniforms(k: int) -> int:
    """Return how many random numbers a record of k likeliest tokens takes at a token and tap.

    One is for the places of the draws, one for their number, and one for each level.
    """
    return 2 + k


@torch.no_grad()
def draw_together(
    logits: Tensor,
    labels: Tensor,
    uniforms: Tensor,
    *,
    m: int,
    later: DrawnTail | None,
    memory: tuple[Tensor, Tensor] | None = None,
) -> tuple[Kept, DrawnTail]:
    """Keep the k likeliest tokens, and those of m draws that are none of them.

    Their number is m times their mass as it is stored, rounded up or down at random.

    Args:
        logits: ``[N, V]`` float32, real tokens only, in any order, finite.
        labels: ``[N]`` long, the columns of the tokens that the data holds.
        uniforms: ``[N, 2 + k]`` in [0, 1), independent; k ≥ 1 likeliest tokens are kept.
        m: draws from the whole distribution, at least 1.
        later: draws of the tap after this one. None for the last tap.
        memory: two buffers ``[N, V]``; the returned ``DrawnTail`` keeps the first.

    Returns:
        The record, whose ids are columns of ``logits``, with draws of the k likeliest tokens
        written as the likeliest, and the draws that the tap before this one may share.
    """
    own, scratch = memory or (None, None)
    places, dice, level_dice = uniforms[:, 0], uniforms[:, 1], uniforms[:, 2:]
    probability = torch.softmax(logits, dim=-1, out=own)
    top, top_ids = likeliest_tokens(probability, level_dice.shape[1])
    read = _entropy_and_label(logits, labels, probability, top_ids[:, :1], scratch)
    tail = probability.scatter_(1, top_ids, 0.0)
    # Sums of stretches first: a sum in float64 alone would copy the whole vocabulary.
    mass = stretch_sums(tail).sum(1, keepdim=True, dtype=uniforms.dtype)
    levels, stored = random_levels(top.to(uniforms.dtype), mass, level_dice)
    # Only m · 1 + a uniform just below 1 could round to m + 1.
    counts = (m * stored + dice).floor().clamp_(max=m).long()
    tail.mul_((counts[:, None] / mass.clamp_min(torch.finfo(tail.dtype).tiny)).to(tail.dtype))
    drawn = coupled_tail_draws(tail, counts, places, m, later, scratch)
    ids = torch.cat([top_ids, torch.where(drawn.positions < 0, top_ids[:, :1], drawn.positions)], 1)
    return Kept(ids, levels, *rounded(*read, places)), drawn


def _entropy_and_label(
    logits: Tensor, labels: Tensor, probability: Tensor, likeliest: Tensor, scratch: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the entropy and the label's log-probability, ``[N]`` each.

    As in ``draw``: log Σ exp z = z − log p, and H = log Σ exp z − Σ p z.
    """
    normaliser = logits.gather(1, likeliest) - probability.gather(1, likeliest).log()
    label_log_prob = (logits.gather(1, labels[:, None]) - normaliser)[:, 0]
    return normaliser[:, 0] - torch.mul(probability, logits, out=scratch).sum(1), label_log_prob


def random_levels(top: Tensor, mass: Tensor, dice: Tensor) -> tuple[Tensor, Tensor]:
    """Round the probabilities ``[N, k]`` and the mass ``[N, 1]`` beyond them to levels at random.

    Each fraction is rounded by a random number of its own. So the mean of every product of them is
    the product of the means, and the mean of a stored probability is the true one.

    Returns:
        The levels ``[N, k]``, and the stored mass ``[N]``.
    """
    together = top.cumsum(-1)
    fractions = (top / together.clamp_min(torch.finfo(top.dtype).tiny))[:, 1:]
    tails, mass_levels = _round(TAILS, mass / (mass + together[:, -1:]), dice[:, :1])
    _, fraction_levels = _round(FRACTIONS, fractions, dice[:, 1:])
    return torch.cat([mass_levels, fraction_levels], 1), tails[:, 0]


def _round(table: np.ndarray, values: Tensor, dice: Tensor) -> tuple[Tensor, Tensor]:
    """Return one of the two neighbours of each value in a table, and its index."""
    steps = begin_send(torch.from_numpy(table).to(values.dtype), values.device)
    below = (torch.searchsorted(steps, values.contiguous(), right=True) - 1).clamp_(min=0)
    above = (below + 1).clamp_(max=len(steps) - 1)
    gap = (steps[above] - steps[below]).clamp_min(torch.finfo(steps.dtype).tiny)
    level = torch.where(dice < (values - steps[below]) / gap, above, below)
    return steps[level], level
