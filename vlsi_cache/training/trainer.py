"""One stage on ``transformers.Trainer``: resumable, saving only what it trains."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from vlsi_cache.errors import StageError
from vlsi_cache.recipe import Schedule
from vlsi_cache.training.loader import (
    SPARE,
    EpochSetter,
    ShareSampler,
    SizedDataset,
    make_loader,
    without_spares,
)
from vlsi_cache.training.metrics import MetricLines
from vlsi_cache.training.processes import on_main_process
from vlsi_cache.training.sample_order import SampleOrder, Share, plain_order
from vlsi_cache.training.workers import quiet_forks, workers_faults

__all__ = ["Journal", "StageModule", "discard_checkpoints", "run_training"]

logger = logging.getLogger(__name__)

_CALMER = "Delete this folder, then lower the stage's learning_rate or add warmup_steps"
_WEIGHTS = "model.safetensors"
_BATCHES_SEEN = "batches_seen"


class Journal(Protocol):
    """Where a stage's tables are written, one line per logging step."""

    def resume(self, step: int) -> None:
        """Drop what was written after a step: it will be written again."""

    def append(self, step: int, tables: Mapping[str, Tensor]) -> None:
        """Write the means of the tables that the module observed since the last line."""


class StageModule(nn.Module):
    """What a stage trains: its forward returns ``{"loss": …}``, and it observes metrics.

    A forward that draws counts its micro-batches in ``batches_seen``, which is saved and restored
    with the parameters: draws that follow from it are those of an unbroken run. What is observed
    of a batch that ``is_spare`` counts for nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.batches_seen = 0
        self.is_spare = False
        self._observed: dict[str, tuple[Tensor, int]] = {}

    def observe(self, name: str, value: Tensor) -> None:
        """Take a value into the running mean of ``name``, without waiting for the device.

        0-d values are metrics; larger ones are tables, which go to the stage's journal.
        """
        value = value.detach().float()  # long sums of autocast's dtype would stand still
        total, count = self._observed.get(name, (torch.zeros_like(value), 0))
        self._observed[name] = (total, count) if self.is_spare else (total + value, count + 1)

    def collect(self) -> dict[str, tuple[Tensor, int]]:
        """Sums and counts of what was observed since the last call."""
        observed, self._observed = self._observed, {}
        return observed


def run_training(
    name: str,
    module: StageModule,
    dataset: SizedDataset,
    collate: Callable[[list[Any]], dict[str, Any]],
    schedule: Schedule,
    folder: Path,
    *,
    device: torch.device,
    autocast: bool,
    seed: int,
    order: SampleOrder | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    journal: Journal | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> None:
    """Train until the schedule ends, going on from the last whole checkpoint in ``folder``.

    Args:
        name: the stage, for metrics.
        module: forward gives the loss; its trainable parameters are saved and restored.
        dataset: samples.
        collate: samples → the keyword arguments of ``module.forward``.
        schedule: length, batch, rates.
        folder: for checkpoints and TensorBoard events.
        device: ``cpu`` keeps the Trainer off accelerators.
        autocast: run the forward in bfloat16 autocast.
        seed: of the data order and dropout.
        order: of the samples; any order will do if not given.
        optimizer: in place of AdamW; the schedule sets its learning rates.
        journal: where observed tables go.
        callbacks: the caller's own; their ``model`` is the module.

    Raises:
        StageError: the loss is not finite.
    """
    on_main_process(lambda: _remove_torn_checkpoints(folder))
    checkpoint = _last_checkpoint(folder)
    trainer = _StageTrainer(
        model=module,
        args=_arguments(schedule, folder, device=device, autocast=autocast, seed=seed),
        train_dataset=dataset,
        data_collator=collate,
        callbacks=[MetricLines(name), EpochSetter(), *callbacks],
        optimizers=(optimizer, None),
    )
    trainer.journal = journal
    trainer.order = order or plain_order(len(dataset))
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if checkpoint is not None:
        logger.info("%s: going on from %s", name, checkpoint.name)
    if journal is not None:
        step = int(checkpoint.name.split("-")[-1]) if checkpoint else 0
        on_main_process(lambda: journal.resume(step))
    with workers_faults(), quiet_forks(schedule.workers):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.prove_finite()


def discard_checkpoints(folder: Path) -> None:
    """Free the space of a finished stage's checkpoints."""
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)


def _arguments(
    schedule: Schedule, folder: Path, *, device: torch.device, autocast: bool, seed: int
) -> TrainingArguments:
    length: dict[str, Any] = (
        {"max_steps": schedule.steps}
        if schedule.steps is not None
        else {"num_train_epochs": schedule.epochs or 1.0}
    )
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=schedule.batch_size,
        gradient_accumulation_steps=schedule.gradient_accumulation,
        learning_rate=schedule.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": schedule.final_learning_rate},
        warmup_steps=schedule.warmup_steps,
        weight_decay=schedule.weight_decay,
        max_grad_norm=schedule.max_grad_norm,
        logging_steps=schedule.log_every,
        logging_first_step=True,
        save_steps=schedule.save_every,
        save_total_limit=2,
        dataloader_num_workers=schedule.workers,
        remove_unused_columns=False,
        report_to=[],
        logging_nan_inf_filter=False,  # the loss is checked here, and the filter waits every step
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
        bf16=autocast,
        dataloader_pin_memory=device.type == "cuda",
        seed=seed,
        **length,
    )
    # several visible GPUs without a launcher would be wrapped in DataParallel, which scatters
    # flat token tensors wrongly: one process drives one device, accelerate launches more
    arguments._n_gpu = min(arguments.n_gpu, 1)  # noqa: SLF001
    return arguments


def _remove_torn_checkpoints(folder: Path) -> None:
    """Remove checkpoints whose last file is not whole."""
    for path in folder.glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            logger.warning("removing %s: an interruption left it incomplete", path)
            shutil.rmtree(path)


def _last_checkpoint(folder: Path) -> Path | None:
    found = folder.glob("checkpoint-*")
    return max(found, key=lambda path: int(path.name.split("-")[-1]), default=None)


class _StageTrainer(Trainer):
    """Saves and restores trainable parameters only: a frozen 72B backbone stays where it is."""

    journal: Journal | None = None
    order: SampleOrder

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This process's batches.

        The loader is not handed to accelerate, which would fill up the last batches with samples
        that other processes have, and forget the epoch where it skips batches to resume.
        """
        dataset: Any = self.train_dataset
        share = Share(
            seed=self.args.seed,
            batch_size=self.args.per_device_train_batch_size,
            rank=self.args.process_index,
            num_ranks=self.args.world_size,
        )
        return make_loader(
            dataset,
            self.data_collator,
            ShareSampler(self.order, share),
            workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            start_method=getattr(self.data_collator, "start_method", None),
        )

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """The module's loss; a spare batch runs in step with the others, and weighs nothing."""
        module = self._module()
        module.is_spare = inputs.pop(SPARE, False)
        loss: Any = super().compute_loss(model, inputs, *args, **kwargs)
        return loss * 0.0 if module.is_spare else loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        count: Any = super()._get_num_items_in_batch(without_spares(batch_samples), device)
        return count if count is None else count.clamp(min=1)  # all of them may be spare

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
        saved = load_file(Path(resume_from_checkpoint) / _WEIGHTS)
        trainable = self._trainable()
        self._module().batches_seen = int(saved.pop(_BATCHES_SEEN, torch.tensor(0)))
        if saved.keys() != trainable.keys():
            raise StageError(
                "checkpoint holds other parameters than this stage trains",
                where=resume_from_checkpoint,
                mend="Delete the stage's folder to train it anew",
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

    def prove_finite(self) -> None:
        """Refuse trained parameters that are NaN or infinite."""
        broken = [
            name for name, value in self._trainable().items() if not torch.isfinite(value).all()
        ]
        if broken:
            raise StageError(
                f"{len(broken)} of the trained parameters are not finite ({broken[0]} …)",
                where=self.args.output_dir,
                mend=_CALMER,
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        tables: dict[str, Tensor] = {}
        for name, (total, count) in self._module().collect().items():
            shared = self.accelerator.reduce(total, reduction="sum")
            counts = self.accelerator.reduce(torch.tensor(count, device=total.device))
            mean = shared / counts
            if mean.ndim == 0:
                logs[name] = mean.item()
            else:
                tables[name] = mean
        loss = logs.get("loss", 0.0)
        if loss != loss or abs(loss) == float("inf"):
            raise StageError(
                f"loss is {loss} at step {self.state.global_step}",
                where=self.args.output_dir,
                mend=_CALMER,
            )
        if tables and self.journal is not None and self.is_world_process_zero():
            self.journal.append(self.state.global_step, tables)
        super().log(logs, start_time)
