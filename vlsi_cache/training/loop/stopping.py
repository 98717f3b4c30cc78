"""Checkpoints by time, and an end on request, at the same step of every process."""

from __future__ import annotations

import time
from typing import Any, Final

from accelerate.utils import gather_object
from transformers import TrainerCallback

from vlsi_cache.interruption import requested_signal

__all__ = ["Checkpointer"]

_LOOK_SECONDS: Final = 5.0
"""Pause between two looks that all processes take together, for each of them waits for the
devices."""


class Checkpointer(TrainerCallback):
    """Saves a checkpoint after so many minutes, and when a stop is asked for.

    Args:
        minutes: longest time between two checkpoints; None for checkpoints by steps alone.

    Attributes:
        stopped_by: the signal that ended the training early.
    """

    def __init__(self, minutes: float | None) -> None:
        self.minutes = minutes
        self.stopped_by: int | None = None
        self._saved = 0.0
        self._step_began = 0.0
        self._next_look = 0

    def on_train_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Start the clock."""
        self._saved = time.monotonic()
        self._next_look = state.global_step + 1

    def on_save(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Start the clock again, whatever the reason to save was."""
        self._saved = time.monotonic()

    def on_step_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Note when the step began."""
        self._step_began = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Save or stop. After the last step there is a result instead."""
        if state.global_step >= self._next_look and state.global_step < state.max_steps:
            self._save_or_stop(args, state, control)
        may_be_best = control.should_evaluate and args.load_best_model_at_end
        if control.should_save or may_be_best:
            # A checkpoint has no sums of the steps since the last line. What goes on from it would
            # never report them, so they have a line before it.
            control.should_log = True

    def _save_or_stop(self, args: Any, state: Any, control: Any) -> None:
        signal_number, is_due = self._look(state.global_step, args.world_size)
        if signal_number:
            self.stopped_by = signal_number
            control.should_training_stop = True
        if signal_number or is_due:
            control.should_save = True

    def _look(self, step: int, num_processes: int) -> tuple[int, bool]:
        """Return the signal of any process, or 0, and whether the main one's time is up."""
        now = time.monotonic()
        is_due = self.minutes is not None and now - self._saved >= 60 * self.minutes
        found = [(requested_signal() or 0, is_due, now - self._step_began)]
        if num_processes > 1:
            # Clocks and signals differ, and processes that disagree would wait for ever.
            found = gather_object(found)
            self._next_look = step + max(1, round(_LOOK_SECONDS / max(found[0][2], 1e-3)))
        return max(number for number, _, _ in found), found[0][1]
