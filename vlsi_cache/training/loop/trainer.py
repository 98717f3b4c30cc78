"""``train``: one stage on ``transformers.Trainer``, which saves only what the stage trains."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from vlsi_cache.errors import StageError, VlsiCacheError
from vlsi_cache.interruption import stop_if_asked
from vlsi_cache.phases import phase
from vlsi_cache.training.advice import folders_to_delete
from vlsi_cache.training.folders.checkpoints import (
    epochs_of,
    is_after_last_step,
    last_checkpoint,
    processes_of,
    renumber,
)
from vlsi_cache.training.folders.writing import plain_write_errors, quiet_event_writer
from vlsi_cache.training.loop.arguments import trainer_arguments
from vlsi_cache.training.loop.groups import give_own_rates, split_scalars
from vlsi_cache.training.loop.guarded import GuardedTrainer
from vlsi_cache.training.loop.guarding.unsound import UnsoundSamples
from vlsi_cache.training.loop.heldout import held_out_callbacks
from vlsi_cache.training.loop.logs.metricfile import MetricFile
from vlsi_cache.training.loop.logs.metrics import MetricLines
from vlsi_cache.training.loop.logs.trackers import tracker_ends
from vlsi_cache.training.loop.pieces import align_pieces, num_tokens
from vlsi_cache.training.loop.rates import FINAL, rate_factor
from vlsi_cache.training.loop.saving import MEND_DIVERGED
from vlsi_cache.training.loop.stopping import Checkpointer
from vlsi_cache.training.processes import (
    from_main_process,
    gathered_numbers,
    has_lost_others,
    lost_others,
    on_main_process,
    raise_together,
)
from vlsi_cache.training.run import Run
from vlsi_cache.training.samples.lengths import sample_lengths
from vlsi_cache.training.samples.loader import (
    BatchReader,
    BatchSampler,
    EpochSetter,
    make_loader,
    quiet_forks,
)
from vlsi_cache.training.samples.order import Indices, ProcessSlice, plain_order
from vlsi_cache.training.sharding import is_sharded
from vlsi_cache.training.stage import Stage, Training

__all__ = ["train"]

logger = logging.getLogger(__name__)

_PROBLEM = -1
"""In place of a process's number of tokens: something is wrong there."""


def train(run: Run, stage: Stage[Any], training: Training[Any]) -> None:
    """Train until the schedule ends, from the last whole checkpoint in the stage's folder.

    Args:
        run: what all stages share.
        stage: name, folder and schedule.
        training: what trains, on what.

    Raises:
        StageError: the loss, or a trained parameter, is not finite.
        Interrupted: a stop was asked for; a checkpoint is there.
    """
    checkpointer = Checkpointer(stage.schedule.save_every_minutes)
    with phase(stage.name, unit="steps") as steps:
        arguments = trainer_arguments(run, stage, training)
        lengths = None if stage.schedule.batch_tokens is None else sample_lengths(run)
        lines = MetricLines(steps)
        metrics = MetricFile(stage.folder)
        callbacks = [lines, metrics, checkpointer]
        callbacks += tracker_ends(run.recipe.report_to)
        callbacks += held_out_callbacks(training.held_out)
        trainer = _StageTrainer(stage, training, arguments, callbacks, lengths)
        if training.guards_samples:
            trainer.unsound = _unsound_samples(run, stage, training)
        trainer.note_broken()
        _train_on(stage, trainer, metrics)
        if checkpointer.stopped_by is not None:
            where = f"step {trainer.state.global_step:,} of {trainer.state.max_steps:,}"
            stop_if_asked(f"at {where} of {stage.name}", checkpointer.stopped_by)
    if trainer.unsound is not None:
        trainer.unsound.validate_end()
    trainer.validate_parameters()
    if trainer.unsound is not None:
        run.reminders.extend(filter(None, [trainer.unsound.summary()]))
    run.figures[stage.name] = lines.last
    run.reminders.extend(_losses_reminder(run, stage, trainer))


def _losses_reminder(run: Run, stage: Stage[Any], trainer: _StageTrainer) -> list[str]:
    """Return what the run says at its end if the losses ended badly."""
    problem = trainer.guard.find_problem()
    if problem is None:
        return []
    folders = folders_to_delete(run.recipe, run.role, stage.name, stage.folder)
    return [
        f"{stage.name}: {problem}. The result may be worse than what it began with. Delete "
        f"{folders}, then run the same command with a learning_rate below "
        f"{trainer.args.learning_rate:.2g} for {stage.name}"
    ]


def _unsound_samples(run: Run, stage: Stage[Any], training: Training[Any]) -> UnsoundSamples:
    dtypes = {value.dtype for value in training.module.parameters()}
    return UnsoundSamples(
        stage.name,
        name=lambda index: run.data.identify(index)[0],
        is_half=torch.float16 in dtypes,
        skips=run.recipe.skips_failures,
        speaks=PartialState().is_main_process,
    )


def _train_on(stage: Stage[Any], trainer: _StageTrainer, metrics: MetricFile) -> None:
    checkpoint = from_main_process(last_checkpoint(stage.folder))
    is_last = from_main_process(checkpoint is not None and is_after_last_step(checkpoint))
    if checkpoint is not None:
        checkpoint = trainer.recount(checkpoint)
        if trainer.is_world_process_zero() and not is_last:
            logger.info("%s: going on from %s", stage.name, checkpoint.name)
    step = int(checkpoint.name.split("-")[-1]) if checkpoint else 0
    on_main_process(lambda: metrics.resume(step))
    journal = trainer.training.journal
    if journal is not None:
        on_main_process(lambda: journal.resume(step))
    trainer.resume_account(checkpoint)
    trainer.resume_measuring(checkpoint)
    if trainer.end_before_training(checkpoint, is_last=is_last):
        return
    with (
        plain_write_errors(stage.folder),
        quiet_event_writer(),
        quiet_forks(stage.schedule.workers),
    ):
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except RuntimeError as error:
            # A SIGTERM to the whole job has ended the workers, and no step can end without them.
            stop_if_asked(f"between two steps of {stage.name}")
            if not has_lost_others(error):
                raise
            raise lost_others(stage.folder) from error


class _StageTrainer(GuardedTrainer):
    """Trains a stage's module on its batches, with its metrics and rates."""

    def __init__(
        self,
        stage: Stage[Any],
        training: Training[Any],
        arguments: TrainingArguments,
        callbacks: Sequence[TrainerCallback],
        lengths: Indices | None = None,
    ) -> None:
        self.training = training
        self.batch_tokens = stage.schedule.batch_tokens
        self.lengths = lengths
        self.warned_of_rise = False
        final = stage.schedule.final_learning_rate
        self.final_factor = FINAL if final is None else final / arguments.learning_rate
        self.order = training.order or plain_order(len(training.dataset))
        self.sharded = is_sharded(training.module)
        super().__init__(
            model=training.module,
            args=arguments,
            train_dataset=training.dataset,
            eval_dataset=None if training.held_out is None else training.held_out.dataset,
            data_collator=training.collate,
            callbacks=[*callbacks, EpochSetter(), *training.callbacks],
            optimizers=(training.optimizer, None),
        )
        # It neither wraps nor moves a sharded module. Its own checkpoints of one would not do, and
        # it says so, unless it learns of it only here.
        self.is_distributed_loading_by_transformers = self.sharded
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.begin_measuring(training.held_out, stage.schedule)

    @contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        """Reduce gradients after every micro-batch: whole ones would take what sharding saves."""
        yield

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return this process's batches.

        The loader is not handed to accelerate, which would fill the last batches with samples that
        other processes have. It would also forget the epoch where it skips batches to resume.
        """
        return make_loader(
            BatchReader(self.training.dataset, self.training.collate, self.batch_tokens),
            BatchSampler(self.order, self._slice()),
            workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            start_method=self.training.start_method,
        )

    def _slice(self) -> ProcessSlice:
        return ProcessSlice(
            seed=self.args.seed,
            batch_size=self.args.per_device_train_batch_size,
            rank=0 if self.training.shares_batches else self.args.process_index,
            num_ranks=1 if self.training.shares_batches else self.args.world_size,
            lengths=self.lengths,
        )

    def recount(self, checkpoint: Path) -> Path:
        """Return a checkpoint whose step counts what these processes would have trained.

        Where epochs are counted, the samples of a step follow from the number of processes.
        """
        # the main process alone reads: it may have renamed the checkpoint before another looks
        known = (0, 0.0)
        if self.is_world_process_zero():
            known = processes_of(checkpoint), epochs_of(checkpoint)
        (before, epochs), now = from_main_process(known), self.args.world_size
        if before == now:
            return checkpoint
        if self.is_world_process_zero():
            logger.info("%s was made by %d processes, and %d go on", checkpoint.name, before, now)
        if self.args.max_steps > 0:
            return checkpoint
        num_batches = self._slice().num_batches(self.order.num_samples)
        per_epoch = -(-num_batches // self.args.gradient_accumulation_steps)
        step = max(int(epochs * per_epoch + 1e-6), 1)
        on_main_process(lambda: renumber(checkpoint, step))
        return checkpoint.with_name(f"checkpoint-{step}")

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Return the module's loss times the batch's weight.

        A batch of weight 0 runs too, since the other processes wait for its gradients.
        """
        weight = inputs.pop("weight")
        inputs.pop("indices")
        module = self._module()
        module.batch_weight = weight
        module.step = self.state.global_step
        module.progress = self.state.global_step / max(self.state.max_steps, 1)
        loss: Any = super().compute_loss(model, inputs, *args, **kwargs)
        loss = loss * float(weight)
        if module.falling is not None:
            self.guard.add_falling(loss * module.falling)
        return loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Give parameters with rates of their own groups of their own."""
        optimizer = super().create_optimizer(model)
        split_scalars(optimizer)
        named = self._module().named_parameters()
        give_own_rates(optimizer, named, self.training.other_rates)
        return optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LRScheduler:
        """Create the schedule of all parameters' rates, once."""
        if self.lr_scheduler is None:
            factor = partial(
                rate_factor,
                warmup=self.args.get_warmup_steps(num_training_steps),
                steps=num_training_steps,
                final=self.final_factor,
            )
            optimizer = optimizer or self.optimizer
            assert optimizer is not None  # the Trainer makes it before
            self.lr_scheduler = LambdaLR(optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _prepare_input(self, data: Any) -> Any:
        """Move a batch to the device, named tuples included."""
        return send_to_device(data, self.args.device)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Count the response tokens of the accumulated batches of all processes.

        What is wrong in one process is raised in all of them, before any waits for its gradients.
        """
        problem = next(
            (batch for batch in batch_samples if isinstance(batch, VlsiCacheError)), None
        )
        count = sum(map(num_tokens, batch_samples)) if problem is None else _PROBLEM
        counts = gathered_numbers(int(count))
        if _PROBLEM in counts:
            raise_together(problem)
        if self.training.shares_batches:  # all processes have counted the same tokens
            counts = counts[:1]
        elif self.args.world_size > 1 and self.batch_tokens is not None:
            align_pieces(batch_samples, self.accelerator, device)
        self._module().tokens_seen += sum(counts)
        return torch.tensor(max(sum(counts), 1), device=device)  # all may have weight 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the observed metrics to the line, and the tables to the journal."""
        tables: dict[str, Tensor] = {}
        for name, mean in self._observed_means().items():
            if mean.ndim == 0:
                logs[name] = mean.item()
            else:
                tables[name] = mean
        loss = logs.get("loss", 0.0)
        if not math.isfinite(loss):
            raise StageError(
                f"loss is {loss} at step {self.state.global_step}",
                where=self.args.output_dir,
                mend=MEND_DIVERGED,
            )
        self._warn_of_rise()
        problem: StageError | None = None
        try:
            with plain_write_errors(Path(str(self.args.output_dir))):
                journal = self.training.journal
                if tables and journal is not None and self.is_world_process_zero():
                    journal.append(self.state.global_step, tables)
                super().log(logs, start_time)
        except StageError as error:
            problem = error
        raise_together(problem)

    def _warn_of_rise(self) -> None:
        problem = self.guard.find_problem()
        if problem is not None and not self.warned_of_rise and self.is_world_process_zero():
            logger.warning("step %d: %s", self.state.global_step, problem)
            self.warned_of_rise = True

    def _observed_means(self) -> dict[str, Tensor]:
        """Return the means over all processes' batches since the last call."""
        means = {}
        observed: dict[str, tuple[Tensor, int]] = {}
        problem: VlsiCacheError | None = None
        try:
            observed = self._module().collect()
        except VlsiCacheError as error:
            problem = error
        raise_together(problem)
        for name, (total, count) in observed.items():
            whole = self.accelerator.reduce(total, reduction="sum")
            means[name] = whole / self.accelerator.reduce(torch.tensor(count, device=total.device))
        return means
