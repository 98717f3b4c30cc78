"""``MeasuringTrainer``: measures on held-out samples, keeps the best checkpoint, and stops early.

These are the Trainer's own means: ``evaluate``, ``metric_for_best_model``,
``load_best_model_at_end`` and ``EarlyStoppingCallback``. Only the figures are this project's.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments

from vlsi_cache.errors import StageError
from vlsi_cache.recipe import Schedule
from vlsi_cache.training.folders.checkpoints import best_of, state_of
from vlsi_cache.training.folders.measurements import MeasurementJournal
from vlsi_cache.training.folders.writing import plain_write_errors
from vlsi_cache.training.loop.measuring import Meter, MeterSettings
from vlsi_cache.training.loop.saving import SavingTrainer
from vlsi_cache.training.loop.tally import HeldOutTally
from vlsi_cache.training.processes import (
    found_by_main_process,
    from_main_process,
    on_main_process,
    raise_together,
)
from vlsi_cache.training.samples.heldout import HeldOut

__all__ = ["MeasuringTrainer", "held_out_arguments", "held_out_callbacks", "keep_best"]

logger = logging.getLogger(__name__)


def held_out_arguments(held_out: HeldOut | None) -> dict[str, Any]:
    """Return the Trainer's arguments for a stage that is measured, or none."""
    if held_out is None:
        return {}
    settings = held_out.settings
    found: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": settings.every}
    if settings.keep == "best":
        found["metric_for_best_model"] = f"held_out_{settings.metric}_nats"
        found["greater_is_better"] = False
        found["restore_callback_states_from_checkpoint"] = True
    return found


def keep_best(arguments: TrainingArguments, held_out: HeldOut | None) -> None:
    """Let the Trainer end with the best weights, if that is asked for.

    Its constructor would want a ``save_every`` that is a multiple of ``every``. Here a new best is
    saved whenever it comes.
    """
    arguments.load_best_model_at_end = held_out is not None and held_out.settings.keep == "best"


def held_out_callbacks(held_out: HeldOut | None) -> list[TrainerCallback]:
    """Return the callback that stops a stage early, if that is asked for."""
    patience = None if held_out is None else held_out.settings.patience
    if held_out is None or patience is None:
        return []
    return [EarlyStoppingCallback(patience, held_out.settings.min_improvement)]


class MeasuringTrainer(SavingTrainer):
    """Measures the module on held-out samples, if there are any."""

    _held_out: HeldOut | None = None
    _meter: Meter | None = None
    _measurements: MeasurementJournal | None = None
    _tally: HeldOutTally | None = None

    def begin_measuring(self, held_out: HeldOut | None, schedule: Schedule) -> None:
        """Take in the samples, once the Trainer is made."""
        if held_out is None:
            return
        settings = MeterSettings(
            batch_size=held_out.settings.batch_size or schedule.batch_size,
            batch_tokens=schedule.batch_tokens,
            workers=schedule.workers,
            is_sharded=self.sharded,
        )
        self._held_out = held_out
        self._meter = Meter(held_out, settings, self.accelerator)
        self._measurements = MeasurementJournal(self._folder)
        self._tally = HeldOutTally(held_out, self._folder)

    def resume_measuring(self, checkpoint: Path | None) -> None:
        """Drop the measurements after a checkpoint, or all without one, and find the best so far.

        Raises:
            StageError: the best checkpoint is not there any more.
        """
        journal, tally = self._measurements, self._tally
        if journal is None or tally is None:
            return
        step = int(checkpoint.name.split("-")[-1]) if checkpoint else 0
        on_main_process(lambda: journal.resume(step))
        tally.left_out = found_by_main_process(journal.left_out)
        if checkpoint is None or not self.args.load_best_model_at_end:
            return
        self.best = from_main_process(best_of(checkpoint))
        is_there = from_main_process(self.best is None or self.best.is_dir())
        if not is_there:
            raise StageError(
                "the best checkpoint so far is not there any more",
                where=self.best,
                mend="Restore it, or delete the stage's folder to train it again",
            )

    def end_before_training(self, checkpoint: Path | None, *, is_last: bool) -> bool:
        """Load the stage's weights, if no step is to follow this checkpoint.

        Args:
            checkpoint: the last one.
            is_last: whether it has all steps, so that its stage was stopped later.

        Returns:
            Whether the stage has ended there, or had stopped early.
        """
        if checkpoint is None:
            return False
        patience = None if self._held_out is None else self._held_out.settings.patience
        has_none = patience is not None and from_main_process(_misses(checkpoint)) >= patience
        if not (is_last or has_none):
            return False
        if self.best is not None:
            self._load_best_model()
        else:
            self._load_from_checkpoint(str(checkpoint))
        return True

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        found: tuple[int, int] = super()._init_training_state(*args, **kwargs)
        # a checkpoint has the settings and paths of its own day
        self.state.compute_steps(self.args, self.state.max_steps)
        if self._held_out is not None:
            self.state.eval_steps = self._held_out.settings.every
            self.state.best_model_checkpoint = None if self.best is None else str(self.best)
        return found

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure the module, and log its figures."""
        assert self._meter is not None  # or the Trainer has nothing to evaluate
        assert self._measurements is not None
        assert self._tally is not None
        step = self.state.global_step
        figures = self._tally.figures(self._meter.measure(self._module()), step)
        problem: StageError | None = None
        try:
            with plain_write_errors(self._folder):
                if self.is_world_process_zero():
                    self._measurements.append(step, figures, self._tally.left_out or ())
                super().log(dict(figures))
        except StageError as error:
            problem = error
        raise_together(problem)
        metrics = {f"eval_{name}": value for name, value in figures.items()}
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        ends = self._has_no_patience() and step < self.state.max_steps
        if ends and self.is_world_process_zero():
            logger.info("step %d is the last: held_out.patience has run out", step)
        return metrics

    def _has_no_patience(self) -> bool:
        """Report whether the last measurements were no better: a signal may end a stage, too."""
        return any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        )

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        is_best: bool = super()._determine_best_metric(metrics, trial)
        # With it, the Trainer lets all processes wait in the middle of a save. One that cannot
        # write would leave the others waiting.
        self.state.best_global_step = None
        if is_best:
            self.best = self._folder / f"checkpoint-{self.state.global_step}"
            self.state.best_model_checkpoint = str(self.best)
            self.control.should_save = True
        return is_best

    def _load_best_model(self) -> None:
        assert self.best is not None  # the Trainer asks only where there is one
        if self.is_world_process_zero():
            logger.info("the weights are those of %s, the best by held_out.metric", self.best)
        self._load_from_checkpoint(str(self.best))

    @property
    def _folder(self) -> Path:
        return Path(str(self.args.output_dir))


def _misses(checkpoint: Path) -> int:
    """Return how many measurements before a checkpoint were no better."""
    states = state_of(checkpoint).get("stateful_callbacks", {})
    attributes = states.get(EarlyStoppingCallback.__name__, {}).get("attributes", {})
    return int(attributes.get("early_stopping_patience_counter", 0))
