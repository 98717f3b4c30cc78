"""The candidates of one student tap: which teacher taps are in reach, and how likely each is.

Shape suffixes: * any leading shape, L_s student taps, L_t teacher taps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlsi_cache.errors import StageError
from vlsi_cache.recipe import MatchingSection

__all__ = ["candidate_mask", "choice_weights", "temperature", "validate_reach"]

_NUM_BOTTOM = 3
_SPREAD_EPSILON = 1e-6  # keeps 2 / (max − min) finite where all candidates agree (Algorithm 1)


def validate_reach(num_student: int, num_teacher: int, matching: MatchingSection) -> None:
    """Validate that every student tap has a candidate.

    Args:
        num_student: L_s.
        num_teacher: L_t, inner taps only.
        matching: strategy and switches.

    Raises:
        StageError: there is no inner teacher tap. Or there are fewer teacher taps than student
            taps, and the search range then leaves a student tap without a candidate.
    """
    if num_teacher == 0:
        raise StageError(
            "the cache holds no inner teacher tap, only the output",
            where="interaction.matching",
            mend="Dump the teacher with taps (teacher.taps), or set interaction.inner: none",
        )
    if matching.search_range and num_teacher < num_student:
        raise StageError(
            "fewer teacher taps than student taps, so the search range leaves no candidate",
            where="interaction.matching",
            expected=f"at least {num_student} teacher taps",
            found=num_teacher,
            mend="Dump more teacher taps (teacher.taps), read fewer of the student (student.taps), "
            "or set interaction.matching.search_range and order to false",
        )


def candidate_mask(
    student_tap: int,
    num_student: int,
    num_teacher: int,
    matching: MatchingSection,
    first: Tensor,
) -> Tensor:
    """The teacher taps that one student tap may be matched with, ``[*, L_t]`` bool.

    Args:
        student_tap: position s of the tap among the student's taps, from 0.
        num_student: L_s.
        num_teacher: L_t.
        matching: strategy and switches.
        first: ``[*]`` long, lowest teacher tap still free.
    """
    position = torch.arange(num_teacher, device=first.device).expand(*first.shape, num_teacher)
    if not matching.search_range:
        return torch.ones_like(position, dtype=torch.bool)
    # The upper bound leaves one teacher tap for each of the L_s − 1 − s student taps that follow.
    lowest = first if matching.order else torch.full_like(first, student_tap)
    return (position >= lowest[..., None]) & (position <= num_teacher - num_student + student_tap)


def temperature(divergence: Tensor, mask: Tensor, matching: MatchingSection) -> Tensor:
    """Temperature of the softmax over candidates ``[*, 1]``, from their spread ``[*, L_t]``."""
    if isinstance(matching.temperature, float):
        return torch.full_like(divergence[..., :1], matching.temperature)
    if not matching.adaptive_temperature:
        return torch.ones_like(divergence[..., :1])
    highest = divergence.masked_fill(~mask, -torch.inf).amax(-1, keepdim=True)
    lowest = divergence.masked_fill(~mask, torch.inf).amin(-1, keepdim=True)
    spread = highest - lowest
    if matching.temperature == "paper":
        return 2.0 / (spread + _SPREAD_EPSILON)
    return spread / 2.0 + _SPREAD_EPSILON


def choice_weights(
    divergence: Tensor, mask: Tensor, current: Tensor | None, matching: MatchingSection
) -> Tensor:
    """Unnormalised probability of every teacher tap, ``[*, L_t]``. It is 0 outside the mask.

    Args:
        divergence: ``[*, L_t]`` nats, from one student tap.
        mask: ``[*, L_t]`` bool, the tap's candidates.
        current: ``[*, 1]``, the temperature. None for strategies without one.
        matching: strategy and switches.
    """
    if matching.strategy == "random":
        return mask.float()
    if current is not None:
        return torch.softmax((-divergence / current).masked_fill(~mask, -torch.inf), dim=-1)
    num_kept = 1 if matching.strategy == "bottom-1" else min(_NUM_BOTTOM, divergence.shape[-1])
    least = divergence.masked_fill(~mask, torch.inf).topk(num_kept, largest=False).indices
    # With fewer candidates than num_kept, topk also returns taps outside the mask.
    return torch.zeros_like(divergence).scatter(-1, least, 1.0) * mask
