"""The end of a tracker's run, where the Trainer leaves it open."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from transformers import TrainerCallback

__all__ = ["tracker_ends"]


def tracker_ends(report_to: Sequence[str]) -> list[TrainerCallback]:
    """Return what ends the runs of these trackers with a stage.

    The Trainer leaves a run of W&B open. The next stage would then go on with the run of the stage
    before, under its name.
    """
    return [_WandbEnd()] if "wandb" in report_to else []


class _WandbEnd(TrainerCallback):
    """Ends the run of W&B that the stage has begun. A caller's own run stays open."""

    def __init__(self) -> None:
        self._wandb: Any = import_module("wandb")
        self._is_own = self._wandb.run is None

    def on_train_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """End it."""
        if self._is_own and self._wandb.run is not None:
            self._wandb.finish()
