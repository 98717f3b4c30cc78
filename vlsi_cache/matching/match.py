"""One matching from one divergence matrix, by any strategy."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vlsi_cache.matching.paths import expected_shares, shortest_path
from vlsi_cache.matching.reach import candidate_mask, choice_weights, temperature
from vlsi_cache.matching.settings import Matching

__all__ = ["Match", "match_layers"]


class Match(NamedTuple):
    """Which teacher taps the student's taps learn from."""

    shares: Tensor
    """``[*, L_s, L_t]`` float32: each teacher tap's part in a student tap's loss; rows sum to 1."""
    tap: Tensor | None
    """``[*, L_s]`` long, 0-based positions among the teacher's taps: the only one that has a
    share; None where several have."""
    temperature: Tensor | None = None
    """``[*, L_s]``, of the softmax over candidates, where there are several; else without meaning.
    None for strategies without one."""
    choice: Tensor | None = None
    """``[*, L_s]`` float32: 1 where there were several candidates, else 0; for ``expected`` the
    probability of it. None for strategies without a temperature."""

    def at(self, sample: Tensor) -> Match:
        """Shares and tap of each token's sample, ``[N, L_s, …]``; one match is every sample's.

        Args:
            sample: ``[N]`` long.
        """

        def chosen(value: Tensor | None, num_axes: int) -> Tensor | None:
            if value is None:
                return None
            if value.ndim == num_axes:
                return value.expand(len(sample), *value.shape)
            return value[sample]

        shares = chosen(self.shares, 2)
        assert shares is not None
        return Match(shares, chosen(self.tap, 1))


def match_layers(divergence: Tensor, matching: Matching, generator: torch.Generator) -> Match:
    """Match every student tap.

    Runs on the divergences' device without waiting for it.

    Args:
        divergence: ``[*, L_s, L_t]``, KL(teacher tap ‖ student tap) in nats; leading axes are
            matched each by itself. No gradient flows through the choice.
        matching: strategy and switches.
        generator: source of the draws, on the divergences' device.
    """
    divergence = divergence.detach().float()
    *leading, num_student, num_teacher = divergence.shape
    if matching.strategy == "expected":
        shares, temperatures, choice = expected_shares(divergence, matching)
        return Match(shares, None, temperatures, choice)
    if matching.strategy == "uniform":
        tap = _evenly(num_student, num_teacher, divergence.device).expand(*leading, num_student)
        return Match(_one_hot(tap, num_teacher), tap)
    if matching.strategy == "shortest":
        tap = shortest_path(divergence)
        return Match(_one_hot(tap, num_teacher), tap)
    return _drawn(divergence, matching, generator)


def _drawn(divergence: Tensor, matching: Matching, generator: torch.Generator) -> Match:
    """Student tap after student tap, each above the one before if order is kept (Algorithm 1)."""
    *leading, num_student, num_teacher = divergence.shape
    first = torch.zeros(leading, dtype=torch.long, device=divergence.device)
    taps, temperatures, choices = [], [], []
    for student_tap in range(num_student):
        mask = candidate_mask(student_tap, num_student, num_teacher, matching, first)
        row, current = divergence[..., student_tap, :], None
        if matching.strategy == "multinomial":
            current = temperature(row, mask, matching)
            temperatures.append(current[..., 0])
            choices.append((mask.sum(-1) > 1).float())
        tap = _draw(choice_weights(row, mask, current, matching), generator)
        taps.append(tap)
        first = tap + 1
    tap = torch.stack(taps, dim=-1)
    shares = _one_hot(tap, num_teacher)
    if not temperatures:
        return Match(shares, tap)
    return Match(shares, tap, torch.stack(temperatures, dim=-1), torch.stack(choices, dim=-1))


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


def _one_hot(tap: Tensor, num_teacher: int) -> Tensor:
    # F.one_hot would look at the values, and wait for them
    return (tap[..., None] == torch.arange(num_teacher, device=tap.device)).float()
