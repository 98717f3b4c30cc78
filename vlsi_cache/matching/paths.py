"""Whole paths by dynamic programming: the mean over Algorithm 1's draws, and the shortest.

Both are exact, take L_s steps, and never wait for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlsi_cache.matching.reach import candidate_mask, choice_weights, temperature
from vlsi_cache.matching.settings import Matching

__all__ = ["expected_shares", "shortest_path"]


def expected_shares(divergence: Tensor, matching: Matching) -> tuple[Tensor, Tensor, Tensor]:
    """Probability that Algorithm 1 matches a student tap with a teacher tap.

    What follows a match depends only on the lowest tap still free. With P_s(f) the probability
    that it is f before student tap s, and π_s(c | f) the softmax over the candidates from f on,
    the marginal is ``Σ_f P_s(f) π_s(c | f)``, and ``P_{s+1}(c + 1)`` is that marginal.

    Args:
        divergence: ``[*, L_s, L_t]`` nats.
        matching: the switches; its strategy is taken for ``multinomial``.

    Returns:
        Shares ``[*, L_s, L_t]``, each row summing to 1; mean temperatures ``[*, L_s]`` where there
        are several candidates; and the probability ``[*, L_s]`` that there are.
    """
    num_student, num_teacher = divergence.shape[-2:]
    first = torch.arange(num_teacher, device=divergence.device)
    free = torch.zeros_like(divergence[..., 0, :])  # P_s
    free[..., 0] = 1.0
    shares, temperatures, choices = [], [], []
    for student_tap in range(num_student):
        mask = candidate_mask(student_tap, num_student, num_teacher, matching, first)
        row = divergence[..., student_tap, None, :].expand(
            *divergence.shape[:-2], num_teacher, num_teacher
        )
        current = temperature(row, mask, matching)
        weights = choice_weights(row, mask, current, matching)
        reachable = mask.any(-1)  # from elsewhere nothing follows, and never does the path come
        weights = torch.where(reachable[:, None], weights, 0.0)
        several = free * (mask.sum(-1) > 1)
        choices.append(several.sum(-1))
        total = torch.where(reachable, current[..., 0], 0.0)
        temperatures.append((several * total).sum(-1) / choices[-1].clamp_min(1e-30))
        shares.append((free[..., None] * weights).sum(-2))
        if matching.order:
            free = torch.zeros_like(free)
            free[..., 1:] = shares[-1][..., :-1]
    return (
        torch.stack(shares, dim=-2),
        torch.stack(temperatures, dim=-1),
        torch.stack(choices, dim=-1),
    )


def shortest_path(divergence: Tensor) -> Tensor:
    """The ascending path of least total divergence, ``[*, L_s]`` long.

    Args:
        divergence: ``[*, L_s, L_t]`` nats, L_s ≤ L_t.
    """
    num_student = divergence.shape[-2]
    total = divergence[..., 0, :]  # of the best path that ends at each teacher tap
    before = []
    for student_tap in range(1, num_student):
        least, position = total.cummin(-1)
        total = torch.full_like(total, torch.inf)
        total[..., 1:] = least[..., :-1] + divergence[..., student_tap, 1:]
        before.append(position.roll(1, -1))
    path = [total.argmin(-1)]
    for position in reversed(before):
        path.append(position.gather(-1, path[-1][..., None])[..., 0])
    return torch.stack(path[::-1], dim=-1)
