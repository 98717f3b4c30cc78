"""``LossGuard``: notices a loss that stays above its first value, and says so in words."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["LossGuard", "find_rise"]

_FEWEST = 4
"""Steps from which a rise can be told from the batches' noise."""
_WINDOW = 10
"""The first and the last tenth of the steps are compared."""
_LONGEST = 100
"""Most steps of either."""


class LossGuard:
    """Keeps the loss of every step, without waiting for the device."""

    def __init__(self) -> None:
        self._step: Tensor | None = None
        self._pending: list[Tensor] = []
        self._count = 0
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=_LONGEST)

    def add(self, loss: Tensor) -> None:
        """Add a micro-batch's part of its step's loss, 0-d."""
        loss = loss.detach().float()
        self._step = loss if self._step is None else self._step + loss

    @property
    def step_loss(self) -> Tensor | None:
        """What was added since the last step; None if nothing was."""
        return self._step

    def drop_step(self) -> None:
        """Forget what was added since the last step."""
        self._step = None

    def end_step(self) -> None:
        """Take what was added as one step's loss."""
        if self._step is not None:
            self._pending.append(self._step)
            self._step = None

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
        if rise is None:
            return None
        first, last = rise
        return f"loss stays above its first value: {first:.3g} at first, {last:.3g} now"


def find_rise(
    first: Sequence[float], last: Sequence[float], count: int
) -> tuple[float, float] | None:
    """Compare the last tenth of the steps with the first.

    The means differ by chance, too. A rise counts if it exceeds the standard error of their
    difference. Differences of neighbours give the noise, which a trend does not change.

    Args:
        first: loss of the first steps.
        last: loss of the last steps, which may overlap.
        count: number of all steps.

    Returns:
        Both means if the last is above the first, or None.
    """
    if count < _FEWEST:
        return None
    head = list(first)[: max(1, count // _WINDOW)]
    tail = list(last)[-max(_FEWEST - 1, count // _WINDOW) :]
    before, after = sum(head) / len(head), sum(tail) / len(tail)
    steps = [later - sooner for part in (first, last) for sooner, later in pairwise(part)]
    variance = sum(step * step for step in steps) / len(steps) / 2
    error = math.sqrt(variance * (1 / len(head) + 1 / len(tail)))
    return (before, after) if after > before + error else None
