"""Training and dumping on several real processes, as lines or whole students; run as a script.

Takes a task as a JSON object, and which of its processes this is.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import TrainerCallback

from support.commands import Job, places
from support.peaks import peak_bytes
from vlsi_cache.data import load_data
from vlsi_cache.errors import DataError, VlsiCacheError
from vlsi_cache.interruption import Interrupted, ask_to_stop
from vlsi_cache.limits import plain_limit_errors
from vlsi_cache.recipe import DataSection, InteractionSection, Recipe, Schedule, recipe_from_mapping
from vlsi_cache.store import open_cache
from vlsi_cache.student import train_student
from vlsi_cache.student.cached.arrivals import recorded_order
from vlsi_cache.student.finetuning import Finetuning
from vlsi_cache.teacher import DumpProgress, dump_teacher
from vlsi_cache.training import Run, Stage, StageModule, Training, load_student
from vlsi_cache.training.loop.trainer import train
from vlsi_cache.training.processes import leave_together, resolve_device
from vlsi_cache.training.samples.loader import make_loader, or_raise
from vlsi_cache.training.samples.order import GroupOrder, SampleOrder
from vlsi_cache.training.sharding import FsdpOptions, shard

__all__ = ["RankServer", "errors", "length_of", "seen"]


class Numbers:
    """Samples that are their index. One may be damaged."""

    def __init__(self, count: int, damaged: int | None) -> None:
        self.count, self.damaged = count, damaged

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        if index == self.damaged:
            raise DataError("the sample is damaged", where=f"sample {index}")
        return index

    def identify(self, index: int) -> tuple[str, str]:
        return f"s{index}", ""


def length_of(sample: int) -> int:
    """How many tokens a sample has."""
    return 1 + sample * 5 % 7


def collate(samples: Sequence[int]) -> dict[str, Any]:
    lengths = torch.tensor([[length_of(sample)] for sample in samples])
    attention = (torch.arange(int(lengths.max())) < lengths).long()
    inputs = {"input_ids": torch.zeros_like(attention), "attention_mask": attention}
    return {"labels": torch.tensor(samples), "inputs": inputs}


class Line(StageModule):
    """A weight whose gradient is the mean of the samples; writes down what it sees.

    Samples may be unsound: in their loss, in their gradient, or in a pass with others alone.
    """

    accepts_loss_kwargs = True

    def __init__(self, log: Path, kill_after: int | None, unsound: Mapping[str, str]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.log, self.left = log, kill_after
        self.unsound = {int(sample): how for sample, how in unsound.items()}

    def forward(
        self, labels: Tensor, num_items_in_batch: Tensor, inputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left = None if self.left is None else self.left - 1
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(labels.tolist()) + "\n")
        loss = self.weight * labels.double().sum() / num_items_in_batch
        self.observe("mean", labels.double().mean() + 0 * loss)
        for sample in labels.tolist():
            how = self.unsound.get(sample)
            if how == "loss" or (how == "company" and len(labels) > 1):
                loss = loss * math.nan
            if how == "gradient":
                loss = loss + (self.weight * 0).sqrt()  # whose gradient is 0 · ∞
        return {"loss": loss}


def train_line(task: Mapping[str, Any], rank: int) -> None:
    folder = Path(task["folder"])
    device = resolve_device("cpu")
    log = folder / f"seen-{rank}-of-{task['num_ranks']}.jsonl"
    chosen = rank in task.get("ranks", range(task["num_ranks"]))
    unsound = task.get("unsound", {})
    module = Line(log, task.get("kill_after") if chosen else None, unsound)
    if chosen and "file_bytes" in task:
        resource.setrlimit(resource.RLIMIT_FSIZE, (task["file_bytes"], resource.RLIM_INFINITY))
    rates = {
        "learning_rate": 1e-3,
        "final_learning_rate": 1e-3,
        "warmup_steps": 0,
        "max_grad_norm": 0,
    }
    numbers: Any = Numbers(task["num_samples"], task.get("damaged"))
    training = Training(
        module,
        numbers,
        collate,
        order=_order(task, folder),
        optimizer=torch.optim.SGD(module.parameters(), lr=1e-3),
        guards_samples=True,
    )
    stage = Stage(
        name="line",
        folder=folder,
        result=folder,
        schedule=Schedule(**rates, **task["schedule"]),
        settings={},
        start=lambda: training,
        save=lambda _: None,
    )
    lengths = np.array([length_of(sample) for sample in range(len(numbers))])
    recipe = Recipe(seed=3, data=DataSection(on_error=task.get("on_error", "stop")))
    run = Run(recipe, device, numbers, lengths=[lengths])
    train(run, stage, training)
    if rank == 0:
        (folder / "reminders.json").write_text(json.dumps(run.reminders), encoding="utf-8")
    if rank == 0:
        (folder / "weight.json").write_text(json.dumps(module.weight.item()), encoding="utf-8")


def _order(task: Mapping[str, Any], folder: Path) -> SampleOrder:
    if "cache" in task:
        settings = InteractionSection(follow=True, follow_timeout_seconds=60)
        return recorded_order(open_cache(task["cache"]), settings, folder)
    samples = torch.arange(task["num_samples"]).numpy()
    return GroupOrder([samples[start : start + 3] for start in range(0, len(samples), 3)], 2)


def dump(task: Mapping[str, Any], rank: int) -> None:
    """Dump a recipe's teacher; the error of each process goes to a file of its own."""
    folder = Path(task["folder"])

    def watch(progress: DumpProgress) -> None:
        if rank == task.get("killed") and progress.num_samples >= task["after"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if progress.num_samples == task.get("threads_end_at"):
            threading.stack_size(2**40)  # more than a process may have
            resource.setrlimit(resource.RLIMIT_AS, (2**39, resource.RLIM_INFINITY))
        if rank == task.get("stopped") and progress.num_samples >= task["after"]:
            ask_to_stop(signal.SIGTERM, "here")

    def after_step(optimizer: Any, *_: Any) -> None:
        """Write down how many numbers of the optimizer's state lie here; kill, if it is time."""
        states = [value for state in optimizer.state.values() for value in state.values()]
        own = [value.to_local() if isinstance(value, DTensor) else value for value in states]
        (folder / f"state-{rank}.txt").write_text(str(sum(value.numel() for value in own)))
        steps.append(1)
        if [rank, len(steps)] == task.get("killed_in_training"):
            os.kill(os.getpid(), signal.SIGKILL)

    steps: list[int] = []
    register_optimizer_step_post_hook(after_step)
    recipe = recipe_from_mapping(task["dump"], where="test")
    try:
        if task.get("measured"):
            peak = peak_bytes(lambda: dump_teacher(recipe))
            (folder / f"peak-{rank}.txt").write_text(str(peak), encoding="utf-8")
        else:
            dump_teacher(recipe, watch)
    except (VlsiCacheError, Interrupted) as error:
        (folder / f"error-{rank}.txt").write_text(str(error), encoding="utf-8")
        os._exit(1)
    leave_together()


class Kill(TrainerCallback):
    """Kills the process when a stage is about to take a step."""

    def __init__(self, stage: str, step: int) -> None:
        self.stage, self.step = stage, step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if Path(args.output_dir).name == self.stage and state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train_whole(task: Mapping[str, Any], rank: int) -> None:
    recipe = Recipe.model_validate(task["recipe"])
    steps: list[int] = []

    def kill_after(*_: Any) -> None:
        """Kill the process after so many steps of the command, in any stage."""
        steps.append(1)
        if len(steps) == task["kill_after_steps"]:
            os.kill(os.getpid(), signal.SIGKILL)

    if "kill_after_steps" in task:
        register_optimizer_step_post_hook(kill_after)
    if task.get("measured"):
        peak = peak_bytes(lambda: train_student(recipe))
        (Path(task["folder"]) / f"peak-{rank}.txt").write_text(str(peak), encoding="utf-8")
        return
    train_student(recipe, [Kill(*task["kill"])] if "kill" in task else [])


def read_limited(task: Mapping[str, Any]) -> None:
    """Read batches ahead by a worker that meets a limit, or cannot send what it has read."""
    found = {"tensor": torch.zeros(10**6)} if task["read"] == "large" else {"lambda": lambda: 0}
    if task["read"] == "large":
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, resource.RLIM_INFINITY))
    with plain_limit_errors():
        for batch in make_loader(lambda _: found, [[1]], workers=1):
            or_raise(batch)


def load_sharded(task: Mapping[str, Any], rank: int) -> None:
    """Load a student to be sharded, and shard it; write down the most memory that this took."""
    recipe = Recipe.model_validate(task["load"])
    device = resolve_device("cpu")
    run = Run(recipe, device, load_data(recipe.data), sharding=FsdpOptions())

    def load() -> None:
        student = load_student(run, recipe.student, trains=True)
        module = Finetuning(student, recipe.finetuning)
        if rank == task.get("odd"):
            module.further = nn.Parameter(torch.zeros(2))
        shard(module, FsdpOptions(), device)

    peak = peak_bytes(load)
    (Path(task["folder"]) / f"peak-{rank}.txt").write_text(str(peak), encoding="utf-8")


def work(task: Mapping[str, Any], rank: int) -> int:
    """Do one process's part of a task, and return its exit code."""
    try:
        if "recipe" in task:
            train_whole(task, rank)
        elif "read" in task:
            read_limited(task)
        elif "load" in task:
            load_sharded(task, rank)
        else:
            (dump if "dump" in task else train_line)(task, rank)
    except VlsiCacheError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        (Path(task["folder"]) / f"error-{rank}.txt").write_text(str(error), encoding="utf-8")
        return error.exit_code
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


class RankServer:
    """Runs tasks on as many processes as they name."""

    def run(self, folder: Path, num_ranks: int, num_samples: int = 0, **task: Any) -> list[int]:
        """Exit codes of the processes, negative if they were killed."""
        task |= {"folder": str(folder), "num_ranks": num_ranks, "num_samples": num_samples}
        env: dict[str, str] = task.get("env", {})
        with ExitStack() as jobs:
            started = [
                jobs.enter_context(
                    Job(
                        *("-m", "support.ranks", json.dumps(task), rank),
                        stdout=1,
                        stderr=2,
                        cwd=Path(__file__).parents[1],
                        env={**place, **env},
                    )
                )
                for rank, place in enumerate(places(num_ranks))
            ]
            return [job.wait() for job in started]


def errors(folder: Path, num_ranks: int) -> list[str]:
    """What each process could not mend."""
    return [(folder / f"error-{rank}.txt").read_text("utf-8") for rank in range(num_ranks)]


def seen(folder: Path, num_ranks: int) -> list[list[list[int]]]:
    """What each process saw, batch by batch."""
    logs = [folder / f"seen-{rank}-of-{num_ranks}.jsonl" for rank in range(num_ranks)]
    return [[json.loads(line) for line in log.read_text().splitlines()] for log in logs]


if __name__ == "__main__":
    code = work(json.loads(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.flush()
    os._exit(code)
