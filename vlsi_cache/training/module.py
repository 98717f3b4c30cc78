"""``StageModule``: what a stage trains, with the values that it observes on the way."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["StageModule"]


class StageModule(nn.Module):
    """A module whose forward returns ``{"loss": …}``, and which observes metrics.

    A forward that draws random numbers counts its micro-batches in ``batches_seen``. The count is
    saved and restored with the parameters, so that draws that follow from it are those of an
    unbroken run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.batches_seen = 0
        self.batch_weight = 1
        """1, or 0 for a batch that only keeps this process in step with the others."""
        self.progress = 0.0
        """Part of the stage's steps that are done, from 0 to 1."""
        self._observed: dict[str, tuple[Tensor, int]] = {}

    def observe(self, name: str, value: Tensor) -> None:
        """Add a value to the running mean of ``name``, without waiting for the device.

        A 0-d value is a metric. A larger one is a table, which goes to the stage's journal.
        """
        value = value.detach().float()  # a long sum in autocast's dtype would stop growing
        total, count = self._observed.get(name, (torch.zeros_like(value), 0))
        if self.batch_weight:
            total = total + value
        self._observed[name] = (total, count + self.batch_weight)

    def collect(self) -> dict[str, tuple[Tensor, int]]:
        """Return sums and counts of what was observed since the last call."""
        observed = self._observed
        self._observed = {}
        return observed
