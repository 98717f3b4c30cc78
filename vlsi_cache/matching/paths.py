"""Whole paths by dynamic programming: the mean over Algorithm 1's draws, and the shortest path.

Both are exact, take L_s steps, and never wait for the device.

Shape suffixes: * any leading shape, L_s student taps, L_t teacher taps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vlsi_cache.matching.reach import candidate_mask, choice_weights, temperature
from vlsi_cache.recipe import MatchingSection

__all__ = ["ExpectedMatch", "expected_match", "shortest_path"]


class ExpectedMatch(NamedTuple):
    """The mean over all paths that Algorithm 1 may draw."""

    shares: Tensor
    """``[*, L_s, L_t]``: probability of each pair. Rows sum to 1."""
    temperature: Tensor
    """``[*, L_s]``: mean temperature where there are several candidates."""
    choice: Tensor
    """``[*, L_s]``: probability that there are several candidates."""


def expected_match(divergence: Tensor, matching: MatchingSection) -> ExpectedMatch:
    """Probability that Algorithm 1 matches a student tap with a teacher tap.

    The matches of later taps depend only on the lowest tap still free. Let P_s(f) be the
    probability that it is f before student tap s, and π_s(c | f) the softmax over the candidates
    from f on. The marginal is then ``Σ_f P_s(f) π_s(c | f)``, and ``P_{s+1}(c + 1)`` equals it.

    Args:
        divergence: ``[*, L_s, L_t]`` nats.
        matching: the switches. The strategy is taken for ``multinomial``.
    """
    free = torch.zeros_like(divergence[..., 0, :])  # P_s(f)
    free[..., 0] = 1.0  # every path starts with all teacher taps free: P_0(0) = 1
    steps = []
    for student_tap in range(divergence.shape[-2]):
        step = _expected_step(divergence, student_tap, free, matching)
        steps.append(step)
        if matching.order:
            # P_{s+1}(c + 1) = Σ_f P_s(f) π_s(c | f). Without order, f never moves.
            free = torch.zeros_like(free)
            free[..., 1:] = step.shares[..., :-1]
    return ExpectedMatch(
        torch.stack([step.shares for step in steps], dim=-2),
        torch.stack([step.temperature for step in steps], dim=-1),
        torch.stack([step.choice for step in steps], dim=-1),
    )


def _expected_step(
    divergence: Tensor, student_tap: int, free: Tensor, matching: MatchingSection
) -> ExpectedMatch:
    """The expected match of one student tap, without the axis L_s.

    Args:
        divergence: ``[*, L_s, L_t]`` nats.
        student_tap: s.
        free: ``[*, L_t]``, P_s.
        matching: the switches.
    """
    num_student, num_teacher = divergence.shape[-2:]
    # Two axes of teacher taps: the lowest tap still free f, then the candidate c.
    first = torch.arange(num_teacher, device=divergence.device)
    mask = candidate_mask(student_tap, num_student, num_teacher, matching, first)
    row = divergence[..., student_tap, None, :].expand(
        *divergence.shape[:-2], num_teacher, num_teacher
    )
    current = temperature(row, mask, matching)
    weights = choice_weights(row, mask, current, matching)
    # A softmax over no candidates is NaN. Such an f has P_s(f) = 0, but 0 · NaN is NaN too.
    reachable = mask.any(-1)
    weights = torch.where(reachable[:, None], weights, 0.0)
    several = free * (mask.sum(-1) > 1)
    choice = several.sum(-1)
    total = torch.where(reachable, current[..., 0], 0.0)
    # Conditional on a choice: E[T · 1(several)] / P(several), and 0 where there never is one.
    mean = (several * total).sum(-1) / choice.clamp_min(1e-30)
    return ExpectedMatch((free[..., None] * weights).sum(-2), mean, choice)


def shortest_path(divergence: Tensor) -> Tensor:
    """The ascending path of least total divergence, ``[*, L_s]`` long.

    With d_s(c) the divergence of student tap s from teacher tap c, the best path that ends at c
    has the total ``D_s(c) = d_s(c) + min_{b < c} D_{s-1}(b)``.

    Args:
        divergence: ``[*, L_s, L_t]`` nats, L_s ≤ L_t.
    """
    num_student = divergence.shape[-2]
    total = divergence[..., 0, :]  # D_s(c)
    before = []
    for student_tap in range(1, num_student):
        # A running minimum gives min_{b ≤ c}. One step to the right turns it into min_{b < c}.
        least, position = total.cummin(-1)
        total = torch.full_like(total, torch.inf)
        total[..., 1:] = least[..., :-1] + divergence[..., student_tap, 1:]
        before.append(position.roll(1, -1))
    # The path is read backwards from its best end, by the predecessors kept on the way.
    path = [total.argmin(-1)]
    for position in reversed(before):
        path.append(position.gather(-1, path[-1][..., None])[..., 0])
    return torch.stack(path[::-1], dim=-1)
