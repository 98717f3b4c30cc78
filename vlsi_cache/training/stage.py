"""``Stage`` and ``Training``: what differs from stage to stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from transformers import TrainerCallback

from vlsi_cache.recipe import Schedule
from vlsi_cache.training.module import StageModule
from vlsi_cache.training.samples.heldout import HeldOut
from vlsi_cache.training.samples.loader import SizedDataset
from vlsi_cache.training.samples.order import SampleOrder

__all__ = ["Journal", "Stage", "Training"]

M = TypeVar("M", bound=StageModule)


class Journal(Protocol):
    """Where a stage's tables are written, one line per logging step."""

    def resume(self, step: int) -> None:
        """Drop the lines after a step: they will be written again."""

    def append(self, step: int, tables: Mapping[str, Tensor]) -> None:
        """Write the means of the tables that the module observed since the last line."""


@dataclass(frozen=True, slots=True)
class Training(Generic[M]):
    """What one stage hands to the Trainer."""

    module: M
    """Its forward gives the loss. Its trainable parameters are saved and restored."""
    dataset: SizedDataset
    """The samples."""
    collate: Callable[[list[Any]], dict[str, Any]]
    """Samples → the keyword arguments of the module's forward."""
    order: SampleOrder | None = None
    """The order of the samples; any order if None."""
    optimizer: torch.optim.Optimizer | None = None
    """In place of AdamW; the schedule sets its learning rates."""
    learning_rate: float | Callable[[], float] = 1e-4
    """Peak learning rate where the schedule names none. The paper's, unless a stage has a rule. A
    function measures it, on the module as it trains."""
    other_rates: Mapping[str, float] = field(default_factory=dict)
    """Peak learning rate of the parameters whose names begin so, where it is not the stage's."""
    begin: Callable[[], None] | None = None
    """Sets the module's first weights, unless there is a checkpoint."""
    other_norms: Mapping[str, float] = field(default_factory=dict)
    """Largest norm of the gradients of the parameters whose names begin so, where they are clipped
    by themselves. 0 turns their clipping off."""
    journal: Journal | None = None
    """Where observed tables go."""
    callbacks: Sequence[TrainerCallback] = ()
    """The stage's and the caller's; their ``model`` is the module."""
    autocast: bool = False
    """Whether the forward runs in bfloat16 autocast."""
    shares_batches: bool = False
    """Whether all processes read the same batches, and each computes a part of the loss."""
    start_method: str | None = None
    """How workers start; Python's default if None."""
    guards_samples: bool = False
    """Whether a step goes on without samples whose loss or gradient is not finite."""
    held_out: HeldOut | None = None
    """The samples on which the module is measured, if any."""

    def rate(self) -> float:
        """Return the peak learning rate where the schedule names none."""
        rate = self.learning_rate
        return rate if isinstance(rate, (int, float)) else rate()


@dataclass(frozen=True, slots=True)
class Stage(Generic[M]):
    """What differs from stage to stage."""

    name: str
    """Its name in metrics and log lines."""
    folder: Path
    """The folder of its settings, checkpoints and events."""
    result: Path
    """The folder that ``save`` fills."""
    schedule: Schedule
    """Length, batch and learning rates."""
    settings: Mapping[str, Any]
    """Everything that the result depends on, as JSON values."""
    start: Callable[[], Training[M]]
    """Makes what trains; called only if the stage is not done."""
    save: Callable[[M], None]
    """Writes the result from the trained module; the main process calls it."""
    config: str = "config.json"
    """The result's file that describes its weights: without it the result is not whole."""
