"""One matching from one divergence matrix, by any strategy."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vlsi_cache.matching.paths import expected_match, shortest_path
from vlsi_cache.matching.reach import candidate_mask, choice_weights, temperature
from vlsi_cache.recipe import MatchingSection

__all__ = ["Match", "match_layers"]


class Match(NamedTuple):
    """The teacher taps that each student tap learns from, with their shares."""

    shares: Tensor
    """``[*, L_s, L_t]`` float32: each teacher tap's share of a student tap's loss. Rows sum to
    1."""
    tap: Tensor | None
    """``[*, L_s]`` long: the one teacher tap that has a share, as its position among the teacher's
    taps. None if several have a share."""
    temperature: Tensor | None = None
    """``[*, L_s]``: temperature of the softmax over candidates. It has no meaning where there is
    only one candidate. None for strategies without a temperature."""
    choice: Tensor | None = None
    """``[*, L_s]`` float32: 1 where there were several candidates, else 0. For ``expected``, the
    probability that there are several. None for strategies without a temperature."""

    def at(self, sample: Tensor) -> Match:
        """Select the shares and the tap of each token's sample, ``[N, L_s, …]``.

        A match without a sample axis holds for every sample.

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


def match_layers(
    divergence: Tensor, matching: MatchingSection, generator: torch.Generator
) -> Match:
    """Match every student tap.

    Runs on the divergences' device without waiting for it.

    Args:
        divergence: ``[*, L_s, L_t]``, KL(teacher tap ‖ student tap) in nats. Each entry of the
            leading axes is matched by itself. No gradient flows through the choice.
        matching: strategy and switches.
        generator: source of the draws, on the divergences' device.
    """
    divergence = divergence.detach().float()
    *leading, num_student, num_teacher = divergence.shape
    if matching.strategy == "expected":
        expected = expected_match(divergence, matching)
        return Match(expected.shares, None, expected.temperature, expected.choice)
    if matching.strategy == "uniform":
        tap = _evenly(num_student, num_teacher, divergence.device).expand(*leading, num_student)
        return Match(_one_hot(tap, num_teacher), tap)
    if matching.strategy == "shortest":
        tap = shortest_path(divergence)
        return Match(_one_hot(tap, num_teacher), tap)
    return _drawn(divergence, matching, generator)


def _drawn(divergence: Tensor, matching: MatchingSection, generator: torch.Generator) -> Match:
    """Draw one student tap after another, each above the one before if ``order`` is on.

    With ``multinomial`` this is Algorithm 1 of the paper.
    """
    *leading, num_student, num_teacher = divergence.shape
    first = torch.zeros(leading, dtype=torch.long, device=divergence.device)
    taps = []
    temperatures = []
    choices = []
    for student_tap in range(num_student):
        mask = candidate_mask(student_tap, num_student, num_teacher, matching, first)
        row = divergence[..., student_tap, :]
        current = None
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
    """Fixed, evenly spaced pairs: student tap s and the teacher tap at the same relative depth."""
    position = torch.arange(num_student, device=device)
    if num_teacher < num_student:
        return position * num_teacher // num_student
    return (position + 1) * num_teacher // num_student - 1


def _draw(weights: Tensor, generator: torch.Generator) -> Tensor:
    """One index per row of unnormalised probabilities ``[*, L_t]``, as an exponential race.

    With ``E_i ~ Exp(1)``, ``argmax_i w_i / E_i`` is i with probability ``w_i / Σ w``.
    ``torch.multinomial`` does the same, but its checks wait for the device.
    """
    arrivals = torch.empty_like(weights).exponential_(generator=generator)
    return (weights / arrivals).argmax(-1)


def _one_hot(tap: Tensor, num_teacher: int) -> Tensor:
    # F.one_hot reads the values to check them, and so waits for the device.
    return (tap[..., None] == torch.arange(num_teacher, device=tap.device)).float()
