"""Layer matching: which teacher tap each student tap learns from (METHOD: Algorithm 1, VLsI §3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlsi_cache.errors import StageError

__all__ = ["Matching", "Strategy", "candidate_mask", "check_room", "match_layers", "temperature"]

Strategy = Literal["random", "uniform", "bottom-1", "bottom-3", "multinomial"]

_NUM_BOTTOM = 3
_SPREAD_EPSILON = 1e-6  # keeps 2 / (max − min) finite where all candidates agree (Algorithm 1)


@dataclass(frozen=True, slots=True)
class Matching:
    """How a teacher tap is chosen for each student tap.

    ``multinomial`` with all three switches on is Algorithm 1 of the paper; the others are its
    ablation (e).
    """

    strategy: Strategy = "multinomial"
    search_range: bool = True
    order: bool = True
    adaptive_temperature: bool = True
    temperature: Literal["paper", "scale_free"] | float = "paper"


def check_room(num_student: int, num_teacher: int, matching: Matching) -> None:
    """Refuse a pair of models whose taps cannot be matched.

    Raises:
        StageError: the search range needs at least as many teacher taps as student taps.
    """
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
    if not matching.adaptive_temperature:
        return torch.ones_like(divergence[..., :1])
    if isinstance(matching.temperature, float | int):
        return torch.full_like(divergence[..., :1], float(matching.temperature))
    highest = divergence.masked_fill(~mask, -torch.inf).amax(-1, keepdim=True)
    lowest = divergence.masked_fill(~mask, torch.inf).amin(-1, keepdim=True)
    spread = highest - lowest
    if matching.temperature == "paper":
        return 2.0 / (spread + _SPREAD_EPSILON)
    return spread / 2.0 + _SPREAD_EPSILON


def match_layers(divergence: Tensor, matching: Matching, generator: torch.Generator) -> Tensor:
    """The teacher tap of every student tap.

    Runs on the divergences' device without waiting for it.

    Args:
        divergence: ``[*, L_s, L_t]``, KL(teacher tap ‖ student tap) in nats; leading axes are
            matched each by itself.
        matching: strategy and switches.
        generator: source of the draws, on the divergences' device.

    Returns:
        ``[*, L_s]`` long, 0-based positions among the teacher's taps.
    """
    *leading, num_student, num_teacher = divergence.shape
    if matching.strategy == "uniform":
        return _evenly(num_student, num_teacher, divergence.device).expand(*leading, num_student)
    first = torch.zeros(leading, dtype=torch.long, device=divergence.device)
    matched = []
    for student_tap in range(num_student):
        mask = candidate_mask(student_tap, num_student, num_teacher, matching, first)
        row = divergence[..., student_tap, :].detach().float()
        chosen = _draw(_choice_weights(row, mask, matching), generator)
        matched.append(chosen)
        first = chosen + 1
    return torch.stack(matched, dim=-1)


def _evenly(num_student: int, num_teacher: int, device: torch.device) -> Tensor:
    """Fixed, evenly spaced pairs: the s-th of L_s meets the teacher tap at the same depth."""
    position = torch.arange(num_student, device=device)
    if num_teacher < num_student:
        return position * num_teacher // num_student
    return (position + 1) * num_teacher // num_student - 1


def _draw(weights: Tensor, generator: torch.Generator) -> Tensor:
    """One index per row of unnormalised probabilities ``[*, L_t]``.

    An exponential race, as in ``torch.multinomial``, without its checks that wait for the device.
    """
    arrivals = torch.empty_like(weights).exponential_(generator=generator)
    return (weights / arrivals).argmax(-1)


def _choice_weights(row: Tensor, mask: Tensor, matching: Matching) -> Tensor:
    """Unnormalised probability of every teacher tap, ``[*, L_t]``; zero outside the mask."""
    if matching.strategy == "random":
        return mask.float()
    if matching.strategy == "multinomial":
        heat = temperature(row, mask, matching)
        return torch.softmax((-row / heat).masked_fill(~mask, -torch.inf), dim=-1)
    num_kept = 1 if matching.strategy == "bottom-1" else min(_NUM_BOTTOM, row.shape[-1])
    least = row.masked_fill(~mask, torch.inf).topk(num_kept, largest=False).indices
    return torch.zeros_like(row).scatter(-1, least, 1.0) * mask
