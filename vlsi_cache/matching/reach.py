"""Who may meet whom, and how likely: candidates, temperature and choice of one student tap.

Shape suffixes: * any leading shape, T teacher taps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlsi_cache.matching.settings import Matching

__all__ = ["candidate_mask", "choice_weights", "temperature"]

_NUM_BOTTOM = 3
_SPREAD_EPSILON = 1e-6  # keeps 2 / (max − min) finite where all candidates agree (Algorithm 1)


def candidate_mask(
    student_tap: int,
    num_student: int,
    num_teacher: int,
    matching: Matching,
    first: Tensor,
) -> Tensor:
    """Teacher taps that one student tap may meet, ``[*, L_t]`` bool.

    Args:
        student_tap: position s of the tap among the student's taps, from 0.
        num_student: L_s.
        num_teacher: L_t.
        matching: the switches.
        first: ``[*]`` long, lowest teacher tap still free.
    """
    position = torch.arange(num_teacher, device=first.device).expand(*first.shape, num_teacher)
    if not matching.search_range:
        return torch.ones_like(position, dtype=torch.bool)
    lowest = first if matching.order else torch.full_like(first, student_tap)
    return (position >= lowest[..., None]) & (position <= num_teacher - num_student + student_tap)


def temperature(divergence: Tensor, mask: Tensor, matching: Matching) -> Tensor:
    """Temperature of the softmax over candidates ``[*, 1]``, from their spread ``[*, L_t]``."""
    if isinstance(matching.temperature, float | int):
        return torch.full_like(divergence[..., :1], float(matching.temperature))
    if not matching.adaptive_temperature:
        return torch.ones_like(divergence[..., :1])
    highest = divergence.masked_fill(~mask, -torch.inf).amax(-1, keepdim=True)
    lowest = divergence.masked_fill(~mask, torch.inf).amin(-1, keepdim=True)
    spread = highest - lowest
    if matching.temperature == "paper":
        return 2.0 / (spread + _SPREAD_EPSILON)
    return spread / 2.0 + _SPREAD_EPSILON


def choice_weights(
    divergence: Tensor, mask: Tensor, current: Tensor | None, matching: Matching
) -> Tensor:
    """Unnormalised probability of every teacher tap, ``[*, L_t]``; zero outside the mask.

    Args:
        divergence: ``[*, L_t]`` nats, of one student tap.
        mask: ``[*, L_t]`` bool, its candidates.
        current: ``[*, 1]``, the temperature, of strategies that know one.
        matching: strategy and switches.
    """
    if matching.strategy == "random":
        return mask.float()
    if current is not None:
        return torch.softmax((-divergence / current).masked_fill(~mask, -torch.inf), dim=-1)
    num_kept = 1 if matching.strategy == "bottom-1" else min(_NUM_BOTTOM, divergence.shape[-1])
    least = divergence.masked_fill(~mask, torch.inf).topk(num_kept, largest=False).indices
    return torch.zeros_like(divergence).scatter(-1, least, 1.0) * mask
