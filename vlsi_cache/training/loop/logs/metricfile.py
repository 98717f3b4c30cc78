"""``MetricFile``: what a stage logs as lines of a file, with the pace of its steps."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from transformers import TrainerCallback

from vlsi_cache.stagefiles import METRICS_FILE, MetricLine
from vlsi_cache.training.folders.lines import keep_lines

__all__ = ["MetricFile"]

_MAXRSS_BYTES: Final = 1 if sys.platform == "darwin" else 1024
_CLOSING: Final = "train_runtime"
"""A metric of the Trainer's closing summary, which repeats the others."""


class MetricFile(TrainerCallback):
    """Appends a line at every log. A resumed stage goes on from its checkpoint's step.

    Args:
        folder: the stage's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / METRICS_FILE
        self._step = 0
        self._tokens = 0
        self._began = self._last = 0.0
        self._other = self._waiting = 0.0

    def resume(self, step: int) -> None:
        """Drop the lines after a checkpoint's step, or all for step 0: it is measured again, too.

        Raises:
            StageError: a line is damaged, and not by an interruption: that tears only the last.
        """
        keep_lines(self.path, MetricLine, step or -1)

    def on_train_begin(self, args, state, control, model=None, **kwargs):  # type: ignore[no-untyped-def]
        """Start the clock."""
        self._step, self._tokens = state.global_step, model.tokens_seen
        self._began = self._last = time.monotonic()

    def on_step_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Count the time since the last event: the batch was waited for."""
        self._waiting += self._elapsed()

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Note the time."""
        self._elapsed()

    def on_save(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Count the time of saving, which is none of the steps'."""
        self._other += self._elapsed()

    def on_evaluate(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Count the time of evaluating, which is none of the steps'."""
        self._other += self._elapsed()

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):  # type: ignore[no-untyped-def]
        """Write a line, by one process."""
        spent = self._elapsed()
        if "loss" not in logs:
            self._other += spent  # it was evaluated
        if not state.is_world_process_zero or _CLOSING in logs:
            return
        line = MetricLine(step=state.global_step, metrics=_finite(logs))
        if "loss" in logs:
            line = line.model_copy(update=self._pace(state.global_step, model.tokens_seen))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line.model_dump_json(exclude_defaults=True) + "\n")

    def _elapsed(self) -> float:
        """Return the seconds since the last event, and begin again."""
        now = time.monotonic()
        spent, self._last = now - self._last, now
        return spent

    def _pace(self, step: int, tokens: int) -> dict[str, Any]:
        """Return the pace of the steps since the last line, and begin again."""
        pace = {
            "num_steps": step - self._step,
            "seconds": self._last - self._began - self._other,
            "waiting_seconds": self._waiting,
            "num_tokens": tokens - self._tokens,
            "host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES,
        }
        if torch.cuda.is_available():
            pace["device_bytes"] = torch.cuda.max_memory_allocated()
        self._step, self._tokens, self._began = step, tokens, self._last
        self._other = self._waiting = 0.0
        return pace


def _finite(logs: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in logs.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }
