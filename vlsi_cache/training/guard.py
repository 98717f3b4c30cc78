"""``LossGuard``: notices a loss that stays above its first value, and says so in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["LossGuard", "find_rise"]

_FEWEST = 4
"""Steps from which a rise can be told from the batches' noise."""
_WINDOW = 10
"""The first and the last tenth of the steps are compared."""


class LossGuard:
    """Keeps the loss of every step, without waiting for the device.

    Args:
        accumulation: micro-batches per step.
    """

    def __init__(self, accumulation: int) -> None:
        self._accumulation = accumulation
        self._pending: list[Tensor] = []
        self._losses: list[float] = []

    def add(self, loss: Tensor) -> None:
        """Add a micro-batch's part of its step's loss, 0-d."""
        self._pending.append(loss.detach())

    def find_problem(self) -> str | None:
        """Say how the loss rose, or return None."""
        whole = len(self._pending) // self._accumulation * self._accumulation
        if whole:
            parts = torch.stack(self._pending[:whole]).float().view(-1, self._accumulation)
            self._losses += parts.sum(1).tolist()
            del self._pending[:whole]
        rise = find_rise(self._losses)
        if rise is None:
            return None
        first, last = rise
        return f"loss stays above its first value: {first:.3g} at first, {last:.3g} now"


def find_rise(losses: Sequence[float]) -> tuple[float, float] | None:
    """Compare the last tenth of the steps with the first.

    The means differ by chance, too. A rise counts if it exceeds the standard error of their
    difference. Differences of neighbours give the noise, which a trend does not change.

    Args:
        losses: loss of every step.

    Returns:
        Both means if the last is above the first, or None.
    """
    count = len(losses)
    if count < _FEWEST:
        return None
    head = max(1, count // _WINDOW)
    tail = max(_FEWEST - 1, count // _WINDOW)
    first, last = sum(losses[:head]) / head, sum(losses[-tail:]) / tail
    steps = [later - sooner for sooner, later in pairwise(losses)]
    variance = sum(step * step for step in steps) / len(steps) / 2
    error = math.sqrt(variance * (1 / head + 1 / tail))
    return (first, last) if last > first + error else None
