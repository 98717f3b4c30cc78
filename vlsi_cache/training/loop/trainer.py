"""``train``: one stage on ``transformers.Trainer``, which saves only what the stage trains."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from vlsi_cache.errors import StageError
from vlsi_cache.interruption import stop_if_asked
from vlsi_cache.phases import phase
from vlsi_cache.training.folders.checkpoints import last_checkpoint, whole_checkpoint
from vlsi_cache.training.folders.writing import (
    plain_read_errors,
    plain_write_errors,
    quiet_event_writer,
)
from vlsi_cache.training.loop.guard import LossGuard
from vlsi_cache.training.loop.metrics import MetricLines
from vlsi_cache.training.loop.pieces import align_pieces, num_tokens, pieces_of, without_sync
from vlsi_cache.training.loop.rates import FINAL, WARMUP, rate_factor
from vlsi_cache.training.loop.stopping import Checkpointer
from vlsi_cache.training.module import StageModule
from vlsi_cache.training.processes import on_main_process
from vlsi_cache.training.run import Run
from vlsi_cache.training.samples.lengths import sample_lengths
from vlsi_cache.training.samples.loader import (
    BatchReader,
    BatchSampler,
    EpochSetter,
    make_loader,
    or_raise,
    quiet_forks,
)
from vlsi_cache.training.samples.order import Indices, ProcessSlice, plain_order
from vlsi_cache.training.stage import Stage, Training

__all__ = ["train"]

logger = logging.getLogger(__name__)

_MEND_DIVERGED = "Delete this folder, then lower the stage's learning_rate or raise warmup_steps"
_WEIGHTS = "model.safetensors"
_BATCHES_SEEN = "batches_seen"


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
        arguments = _arguments(run, stage, training)
        lengths = None if stage.schedule.batch_tokens is None else sample_lengths(run)
        callbacks = [MetricLines(steps), checkpointer]
        trainer = _StageTrainer(stage, training, arguments, callbacks, lengths)
        _train_on(stage, training, trainer)
        if checkpointer.stopped_by is not None:
            where = f"step {trainer.state.global_step:,} of {trainer.state.max_steps:,}"
            stop_if_asked(f"at {where} of {stage.name}", checkpointer.stopped_by)
    trainer.validate_parameters()
    problem = trainer.guard.find_problem()
    if problem is not None:
        rate = arguments.learning_rate
        run.reminders.append(
            f"{stage.name}: {problem}. The result may be worse than what it began with. Delete "
            f"{stage.folder}, then train it with a learning_rate below {rate:.2g}"
        )


def _train_on(stage: Stage[Any], training: Training[Any], trainer: Trainer) -> None:
    checkpoint = last_checkpoint(stage.folder)
    if checkpoint is not None:
        logger.info("%s: going on from %s", stage.name, checkpoint.name)
    journal = training.journal
    if journal is not None:
        step = int(checkpoint.name.split("-")[-1]) if checkpoint else 0
        on_main_process(lambda: journal.resume(step))
    with (
        plain_write_errors(stage.folder),
        quiet_event_writer(),
        quiet_forks(stage.schedule.workers),
    ):
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except RuntimeError:
            # A SIGTERM to the whole job has ended the workers, and no step can end without them.
            stop_if_asked(f"between two steps of {stage.name}")
            raise


def _arguments(run: Run, stage: Stage[Any], training: Training[Any]) -> TrainingArguments:
    schedule = stage.schedule
    length: dict[str, Any] = (
        {"max_steps": schedule.steps}
        if schedule.steps is not None
        else {"num_train_epochs": schedule.epochs or 1.0}
    )
    arguments = TrainingArguments(
        output_dir=str(stage.folder),
        per_device_train_batch_size=schedule.batch_size,
        gradient_accumulation_steps=schedule.gradient_accumulation,
        learning_rate=schedule.learning_rate or training.learning_rate,
        warmup_steps=WARMUP if schedule.warmup_steps is None else schedule.warmup_steps,
        weight_decay=schedule.weight_decay,
        max_grad_norm=schedule.max_grad_norm,
        logging_steps=schedule.log_every,
        logging_first_step=True,
        save_steps=schedule.save_every,
        dataloader_num_workers=schedule.workers,
        remove_unused_columns=False,
        report_to=[],
        logging_nan_inf_filter=False,  # `log` checks the loss, and the filter waits every step
        disable_tqdm=True,
        use_cpu=run.device.type == "cpu",
        bf16=training.autocast,
        dataloader_pin_memory=run.device.type == "cuda",
        seed=run.recipe.seed,
        **length,
    )
    # Without a launcher, several visible GPUs would be wrapped in DataParallel, which scatters flat
    # token tensors wrongly. One process drives one device, and accelerate launches more.
    arguments._n_gpu = min(arguments.n_gpu, 1)  # noqa: SLF001
    return arguments


class _StageTrainer(Trainer):
    """Saves and restores trainable parameters only: a frozen 72B backbone is not written again."""

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
        self.guard = LossGuard()
        self.warned_of_rise = False
        final = stage.schedule.final_learning_rate
        self.final_factor = FINAL if final is None else final / arguments.learning_rate
        self.order = training.order or plain_order(len(training.dataset))
        super().__init__(
            model=training.module,
            args=arguments,
            train_dataset=training.dataset,
            data_collator=training.collate,
            callbacks=[*callbacks, EpochSetter(), *training.callbacks],
            optimizers=(training.optimizer, None),
        )
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return this process's batches.

        The loader is not handed to accelerate, which would fill the last batches with samples that
        other processes have. It would also forget the epoch where it skips batches to resume.
        """
        process = ProcessSlice(
            seed=self.args.seed,
            batch_size=self.args.per_device_train_batch_size,
            rank=0 if self.training.shares_batches else self.args.process_index,
            num_ranks=1 if self.training.shares_batches else self.args.world_size,
            lengths=self.lengths,
        )
        return make_loader(
            BatchReader(self.training.dataset, self.training.collate, self.batch_tokens),
            BatchSampler(self.order, process),
            workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            start_method=self.training.start_method,
        )

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Return the module's loss times the batch's weight.

        A batch of weight 0 runs too, since the other processes wait for its gradients.
        """
        weight = inputs.pop("weight")
        module = self._module()
        module.batch_weight = weight
        module.progress = self.state.global_step / max(self.state.max_steps, 1)
        loss: Any = super().compute_loss(model, inputs, *args, **kwargs)
        return loss * float(weight)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Train on a micro-batch, piece by piece, and show its loss to the guard."""
        *pieces, last = pieces_of(inputs)
        losses: list[Tensor] = []
        for piece in pieces:
            with without_sync(self.accelerator, model):
                losses.append(super().training_step(model, piece, *args, **kwargs))
        losses.append(super().training_step(model, last, *args, **kwargs))
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        self.guard.add(loss)
        if self.accelerator.sync_gradients:
            self.guard.end_step()
        return loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Give parameters with rates of their own groups of their own."""
        optimizer = super().create_optimizer(model)
        for prefix, rate in self.training.other_rates.items():
            named = self._module().named_parameters()
            own = {id(value) for name, value in named if name.startswith(prefix)}
            for group in list(optimizer.param_groups):
                split = {**group, "params": [p for p in group["params"] if id(p) in own]}
                group["params"] = [p for p in group["params"] if id(p) not in own]
                optimizer.add_param_group({**split, "lr": rate})
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
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
        """Count the response tokens of the accumulated batches of all processes."""
        batches = [or_raise(batch) for batch in batch_samples]
        count = torch.tensor(sum(map(num_tokens, batches)))
        if self.args.world_size > 1 and not self.training.shares_batches:
            if self.batch_tokens is not None:
                align_pieces(batches, self.accelerator, device)
            count = self.accelerator.gather(count.to(device)).sum()
        return count.to(device).clamp(min=1)  # all batches may have weight 0

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        # the Trainer's own limit would also delete what the user put there
        with whole_checkpoint(Path(str(self.args.output_dir)), self.state.global_step):
            super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with plain_read_errors(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with plain_read_errors(checkpoint):
            super()._load_rng_state(checkpoint)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            name: parameter.detach().contiguous().cpu()
            for name, parameter in self._trainable().items()
        }
        state[_BATCHES_SEEN] = torch.tensor(self._module().batches_seen)
        save_file(state, folder / _WEIGHTS, metadata={"format": "pt"})

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        with plain_read_errors(resume_from_checkpoint):
            saved = load_file(Path(resume_from_checkpoint) / _WEIGHTS)
        trainable = self._trainable()
        self._module().batches_seen = int(saved.pop(_BATCHES_SEEN, torch.tensor(0)))
        if saved.keys() != trainable.keys():
            raise StageError(
                "checkpoint holds other parameters than this stage trains",
                where=resume_from_checkpoint,
                mend="Delete the stage's folder to train it again",
            )
        with torch.no_grad():
            for name, parameter in trainable.items():
                parameter.copy_(saved[name])

    def _trainable(self) -> dict[str, nn.Parameter]:
        parameters = self._module().named_parameters()
        return {name: value for name, value in parameters if value.requires_grad}

    def _module(self) -> StageModule:
        module = self.accelerator.unwrap_model(self.model)
        assert isinstance(module, StageModule)
        return module

    def validate_parameters(self) -> None:
        """Refuse trained parameters that are NaN or infinite."""
        broken = [
            name for name, value in self._trainable().items() if not torch.isfinite(value).all()
        ]
        if broken:
            raise StageError(
                f"{len(broken)} of the trained parameters are not finite ({broken[0]} …)",
                where=self.args.output_dir,
                mend=_MEND_DIVERGED,
            )

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
                mend=_MEND_DIVERGED,
            )
        self._warn_of_rise()
        journal = self.training.journal
        if tables and journal is not None and self.is_world_process_zero():
            journal.append(self.state.global_step, tables)
        super().log(logs, start_time)

    def _warn_of_rise(self) -> None:
        problem = self.guard.find_problem()
        if problem is not None and not self.warned_of_rise and self.is_world_process_zero():
            logger.warning("step %d: %s", self.state.global_step, problem)
            self.warned_of_rise = True

    def _observed_means(self) -> dict[str, Tensor]:
        """Return the means over all processes' batches since the last call."""
        means = {}
        for name, (total, count) in self._module().collect().items():
            whole = self.accelerator.reduce(total, reduction="sum")
            means[name] = whole / self.accelerator.reduce(torch.tensor(count, device=total.device))
        return means
