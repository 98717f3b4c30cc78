"""How layers are matched: strategy and switches, and the taps they need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vlsi_cache.errors import StageError

__all__ = ["Matching", "Strategy", "check_room"]

Strategy = Literal[
    "random", "uniform", "bottom-1", "bottom-3", "multinomial", "expected", "shortest"
]


@dataclass(frozen=True, slots=True)
class Matching:
    """How a teacher tap is chosen for each student tap.

    ``multinomial`` with all three switches on is Algorithm 1 of the paper; ``random`` to
    ``bottom-3`` are its ablation (e). ``expected`` and ``shortest`` are this project's.

    Raises:
        ValueError: ``shortest`` or ``order`` without what they build on.
    """

    strategy: Strategy = "multinomial"
    """``random``: any candidate; ``uniform``: fixed, evenly spaced pairs; ``bottom-1``: least
    divergence; ``bottom-3``: one of the three least; ``multinomial``: softmax over candidates;
    ``expected``: every candidate, by the probability that ``multinomial`` gives it; ``shortest``:
    the ascending path of least total divergence."""
    search_range: bool = True
    """Student tap s of L_s meets only s … L_t − L_s + s."""
    order: bool = True
    """A student tap meets only teacher taps above the one matched before."""
    adaptive_temperature: bool = True
    """``temperature`` follows the spread of the divergences; off, it is 1."""
    temperature: Literal["paper", "scale_free"] | float = "paper"
    """``paper``: 2 / (max − min); ``scale_free``: (max − min) / 2; or a
    number, which holds whether or not ``adaptive_temperature`` is on."""

    def __post_init__(self) -> None:
        if self.order and not self.search_range:
            raise ValueError("order needs search_range, which keeps room for the taps that follow")
        if self.strategy == "shortest" and not self.order:
            raise ValueError("the shortest path ascends: it needs order")


def check_room(num_student: int, num_teacher: int, matching: Matching) -> None:
    """Refuse a pair of models whose taps cannot be matched.

    Args:
        num_student: L_s.
        num_teacher: L_t, inner taps only.
        matching: how they are to be matched.

    Raises:
        StageError: there is no inner teacher tap, or fewer than student taps where the search
            range then leaves some student tap without a candidate.
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
