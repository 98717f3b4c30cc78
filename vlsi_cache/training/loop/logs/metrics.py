"""A stage's metrics as log lines, and as TensorBoard events beside its checkpoints."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from transformers import TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback

from vlsi_cache.phases import Phase

__all__ = ["MetricLines"]

_FIRST_LINES: Final = 10
"""Lines that are logged as they come. Later ones are logged once a minute."""
_LINE_SECONDS: Final = 60.0


class MetricLines(TrainerCallback):
    """Logs the metrics, and writes those of every logging step as TensorBoard events.

    Args:
        phase: the stage's training, which reports its steps.

    Attributes:
        last: the metrics of the last logging step.
    """

    def __init__(self, phase: Phase) -> None:
        self.phase = phase
        self.writer: TensorBoardCallback | None = None
        self.last: dict[str, float] = {}
        self._num_lines = 0
        self._spoke = 0.0

    def on_train_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Start the clock and open the events."""
        self.phase.begin_at(state.global_step, state.max_steps)
        if state.is_world_process_zero:
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(log_dir=str(Path(args.output_dir) / "tensorboard"))
            self.writer = TensorBoardCallback(tb_writer=writer)

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Count the step, and log the last one too."""
        self.phase.advance()
        if state.global_step >= state.max_steps:
            control.should_log = True

    def on_log(self, args, state, control, logs=None, **kwargs):  # type: ignore[no-untyped-def]
        """Write the events, and log a line if one is due, by one process."""
        if not state.is_world_process_zero or self.writer is None:
            return
        if "held_out_loss_nats" in logs:
            self.writer.on_log(args, state, control, logs=logs)
            self.phase.say(self._held_out_line(state, logs))
            return
        if "loss" not in logs:
            return  # the Trainer's closing summary
        self.writer.on_log(args, state, control, logs=logs)
        self.last = dict(logs)
        self.phase.detail = f"loss {logs['loss']:.4g}"
        now = time.monotonic()
        is_last = state.global_step >= state.max_steps
        if is_last or self._num_lines < _FIRST_LINES or now - self._spoke >= _LINE_SECONDS:
            self._num_lines += 1
            self._spoke = now
            self.phase.say(self._line(state, logs))

    def on_train_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Close the events."""
        if self.writer is not None and self.writer.tb_writer is not None:
            self.writer.tb_writer.close()

    def _held_out_line(self, state: Any, logs: Mapping[str, float]) -> str:
        figures = [f"held-out loss {logs['held_out_loss_nats']:.4f}"]
        if "held_out_divergence_nats" in logs:
            figures.append(f"divergence {logs['held_out_divergence_nats']:.4f}")
        count = f"step {state.global_step:,} of {state.max_steps:,}"
        samples = f"({logs['held_out_samples']:,.0f} samples)"
        return "  ".join((self.phase.what, count, *figures, samples))

    def _line(self, state: Any, logs: Mapping[str, float]) -> str:
        taps = [name for name in logs if name.startswith("tap_")]
        metrics = []
        for name, value in logs.items():
            if name in ("epoch", "grad_norm"):
                continue
            metrics.append(f"{name} {value:.4g}")
            if name == "loss" and len(taps) > 1:
                each = f"{value / len(taps):.4g}"
                metrics[-1] += f" = sum over {len(taps)} taps, {each} each"
        count = f"step {state.global_step:,} of {state.max_steps:,}"
        return "  ".join(filter(None, (self.phase.what, count, *metrics, self.phase.pace())))
