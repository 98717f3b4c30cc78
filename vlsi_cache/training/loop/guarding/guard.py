"""``LossGuard``: notices a loss that stays above its first value, and says so in words."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import torch
from torch import Tensor

__all__ = ["LossGuard", "Rise", "find_rise"]

_FEWEST = 10
"""Steps from which a rise can be told from the batches' noise."""
_WINDOW = 10
"""The first and the last tenth of the steps are compared."""
_SHORTEST = 5
"""Fewest last steps."""
_LONGEST = 100
"""Most steps of either."""
_ERRORS = 3
"""Standard errors that count as a rise. Under 1 in 10 runs of a flat loss goes so far by chance,
although the guard looks many times in a run."""


class LossGuard:
    """Keeps the loss of every step, without waiting for the device."""

    def __init__(self) -> None:
        self._step: Tensor | None = None
        self._falling: Tensor | None = None
        self._pending: list[Tensor] = []
        self._count = 0
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=_LONGEST)

    def add(self, loss: Tensor) -> None:
        """Add a micro-batch's part of its step's loss, 0-d."""
        self._step = _sum(self._step, loss)

    def add_falling(self, loss: Tensor) -> None:
        """Add a part of it whose weight falls: it would hide that the others rise."""
        self._falling = _sum(self._falling, loss)

    @property
    def step_loss(self) -> Tensor | None:
        """What was added since the last step; None if nothing was."""
        return self._step

    def drop_step(self) -> None:
        """Forget what was added since the last step."""
        self._step = self._falling = None

    def end_step(self) -> None:
        """Take what was added as one step's loss, without what falls by its weight."""
        if self._step is not None:
            falling = self._falling
            self._pending.append(self._step if falling is None else self._step - falling)
        self.drop_step()

    def written(self) -> Tensor:
        """Return what a later run goes on from: the count, and the first and last losses."""
        self._take_pending()
        numbers = [self._count, len(self._first), *self._first, *self._last]
        return torch.tensor(numbers, dtype=torch.float64)

    def resume(self, written: Tensor) -> None:
        """Go on from what `written` gave."""
        count, num_first, *losses = written.tolist()
        self._count = int(count)
        self._first = losses[: int(num_first)]
        self._last = deque(losses[int(num_first) :], _LONGEST)
        self._pending.clear()

    def _take_pending(self) -> None:
        if self._pending:
            losses = torch.stack(self._pending).tolist()
            self._count += len(losses)
            self._first += losses[: _LONGEST - len(self._first)]
            self._last += losses
            self._pending.clear()

    def find_problem(self) -> str | None:
        """Say how the loss rose, or return None."""
        self._take_pending()
        rise = find_rise(self._first, self._last, self._count)
        return None if rise is None else f"loss stays above its first value: {rise.text()}"


def _sum(before: Tensor | None, loss: Tensor) -> Tensor:
    loss = loss.detach().float()
    return loss if before is None else before + loss


@dataclass(frozen=True, slots=True)
class Rise:
    """How the loss of the last steps is above that of the first."""

    num_first: int
    """Number of first steps."""
    first: float
    """Their mean loss."""
    num_last: int
    """Number of last steps."""
    last: float
    """Their mean loss."""

    def text(self) -> str:
        """Return both, as the steps' own lines write a loss."""
        one = self.num_first == 1
        begin = "at step 1" if one else f"is the mean of the first {self.num_first} steps"
        return f"{self.first:.4g} {begin}, {self.last:.4g} is the mean of the last {self.num_last}"


def find_rise(first: Sequence[float], last: Sequence[float], count: int) -> Rise | None:
    """Compare the last tenth of the steps with the first step, and with the first tenth.

    The means differ by chance, too. A rise counts if it exceeds three standard errors of their
    difference. Differences of neighbours give the noise, which a trend does not change. The noise
    of a spoilt run grows with its loss, so logarithms are compared.

    Args:
        first: loss of the first steps.
        last: loss of the last steps, which may overlap.
        count: number of all steps.

    Returns:
        What is compared if the last steps are above the first, or None.
    """
    if count < _FEWEST:
        return None
    first, last = list(first), list(last)
    tail = last[-max(_SHORTEST, count // _WINDOW) :]
    scale = math.log if min(*first, *last) > 0 else float
    steps = [scale(b) - scale(a) for part in (first, last) for a, b in pairwise(part)]
    variance = fmean(step * step for step in steps) / 2
    for head in (first[:1], first[: count // _WINDOW]):
        error = math.sqrt(variance * (1 / len(head) + 1 / len(tail)))
        is_above = fmean(map(scale, tail)) > fmean(map(scale, head)) + _ERRORS * error
        if is_above and fmean(tail) > fmean(head):
            return Rise(len(head), fmean(head), len(tail), fmean(tail))
    return None
