"""A stage's metrics as log lines, and as TensorBoard events beside its checkpoints."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback

__all__ = ["MetricLines"]

logger = logging.getLogger(__name__)


class MetricLines(TrainerCallback):
    """Logs the metrics of every logging step, and writes them as TensorBoard events.

    Args:
        name: the stage's name.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.started = 0.0
        self.first_step = 0
        self.writer: TensorBoardCallback | None = None

    def on_train_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Start the clock and open the events."""
        self.started = time.monotonic()
        self.first_step = state.global_step
        if state.is_world_process_zero:
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(log_dir=str(Path(args.output_dir) / "tensorboard"))
            self.writer = TensorBoardCallback(tb_writer=writer)

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Log the last step too."""
        if state.global_step >= state.max_steps:
            control.should_log = True

    def on_log(self, args, state, control, logs=None, **kwargs):  # type: ignore[no-untyped-def]
        """Log one line, by one process."""
        if not state.is_world_process_zero or self.writer is None:
            return
        if "loss" not in logs:
            return  # the Trainer's closing summary
        self.writer.on_log(args, state, control, logs=logs)
        logger.info("%s", self._line(state, logs))

    def on_train_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Close the events."""
        if self.writer is not None and self.writer.tb_writer is not None:
            self.writer.tb_writer.close()

    def _line(self, state: Any, logs: Mapping[str, float]) -> str:
        done = state.global_step - self.first_step
        rate = done / max(time.monotonic() - self.started, 1e-9)
        left = (state.max_steps - state.global_step) / max(rate, 1e-9)
        metrics = "  ".join(
            f"{name} {value:.4g}"
            for name, value in logs.items()
            if name not in ("epoch", "grad_norm")
        )
        return (
            f"{self.name}  {state.global_step}/{state.max_steps}  {metrics}  "
            f"{rate:.2f} steps/s  {left:.0f} s left"
        )
