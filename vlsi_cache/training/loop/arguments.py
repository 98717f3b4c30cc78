"""The Trainer's arguments, from the recipe and from what a stage brings."""

from __future__ import annotations

from typing import Any

from transformers import TrainingArguments

from vlsi_cache.recipe import Schedule
from vlsi_cache.training.loop.heldout import held_out_arguments, keep_best
from vlsi_cache.training.loop.rates import WARMUP
from vlsi_cache.training.run import Run
from vlsi_cache.training.stage import Stage, Training

__all__ = ["trainer_arguments"]


def trainer_arguments(run: Run, stage: Stage[Any], training: Training[Any]) -> TrainingArguments:
    """Return the Trainer's arguments for one stage."""
    schedule = stage.schedule
    arguments = TrainingArguments(
        output_dir=str(stage.folder),
        per_device_train_batch_size=schedule.batch_size,
        gradient_accumulation_steps=schedule.gradient_accumulation,
        learning_rate=schedule.learning_rate or training.rate(),
        warmup_steps=WARMUP if schedule.warmup_steps is None else schedule.warmup_steps,
        weight_decay=schedule.weight_decay,
        max_grad_norm=schedule.max_grad_norm,
        logging_steps=schedule.log_every,
        logging_first_step=True,
        save_steps=schedule.save_every,
        dataloader_num_workers=schedule.workers,
        remove_unused_columns=False,
        logging_nan_inf_filter=False,  # `log` checks the loss, and the filter waits every step
        disable_tqdm=True,
        use_cpu=run.device.type == "cpu",
        bf16=training.autocast,
        dataloader_pin_memory=run.device.type == "cuda",
        seed=run.recipe.seed,
        **_length(schedule),
        **_trackers(run, stage),
        **held_out_arguments(training.held_out),
    )
    keep_best(arguments, training.held_out)
    # Without a launcher, several visible GPUs would be wrapped in DataParallel, which scatters flat
    # token tensors wrongly. One process drives one device, and accelerate launches more.
    arguments._n_gpu = min(arguments.n_gpu, 1)  # noqa: SLF001
    return arguments


def _length(schedule: Schedule) -> dict[str, Any]:
    if schedule.steps is not None:
        return {"max_steps": schedule.steps}
    return {"num_train_epochs": schedule.epochs or 1.0}


def _trackers(run: Run, stage: Stage[Any]) -> dict[str, Any]:
    """Return where figures go. The events of TensorBoard are written whoever asks."""
    name = run.recipe.run_name or run.recipe.output.name
    return {
        "report_to": [tracker for tracker in run.recipe.report_to if tracker != "tensorboard"],
        "run_name": f"{name}-{stage.name}",
    }
