"""``run_stage``: begin, train, save, finish, discard; written once for every stage."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, TypeVar

from vlsi_cache.errors import VlsiCacheError
from vlsi_cache.interruption import finishing_steps, stop_if_asked
from vlsi_cache.phases import phase
from vlsi_cache.training.folders.checkpoints import last_checkpoint
from vlsi_cache.training.folders.stage_folder import StageFolder, one_job_at_a_time
from vlsi_cache.training.loop.trainer import train
from vlsi_cache.training.memory_errors import plain_memory_errors
from vlsi_cache.training.module import StageModule
from vlsi_cache.training.processes import is_main_process, raise_together
from vlsi_cache.training.run import Run
from vlsi_cache.training.sharding import FsdpOptions, gather, shard
from vlsi_cache.training.stage import Stage, Training

__all__ = ["run_stage"]

M = TypeVar("M", bound=StageModule)

logger = logging.getLogger(__name__)


def run_stage(run: Run, stage: Stage[M]) -> Path:
    """Make a stage's result, unless it is there.

    An interrupted stage goes on from its last checkpoint. Jobs that share the folder take turns:
    one trains while the others wait.

    Args:
        run: what all stages share.
        stage: what this one adds.

    Returns:
        Folder of the result.

    Raises:
        StageError: the folder holds a stage made with other settings, training diverged, or the
            memory ran out.
        Interrupted: a stop was asked for; a checkpoint is there.
    """
    folder = StageFolder(stage.folder, stage.settings, stage.result / stage.config)
    folder.validate_settings()  # a job with other settings need not wait to be refused
    with one_job_at_a_time(stage.folder):
        if folder.enter():
            with plain_memory_errors(stage):
                _make(run, stage, folder)
        else:
            logger.info("%s: finished before, nothing to do (%s)", stage.name, stage.result)
        folder.leave()
    return stage.result


def _make(run: Run, stage: Stage[Any], folder: StageFolder) -> None:
    run.report_left_out(stage.name)
    with phase(f"{stage.name}: preparing"):
        training = _started(stage)
        # processes that hold one teacher together share its verbalizers, and their moments, too
        together = FsdpOptions(was_asked_for=False) if training.shares_batches else None
        sharding = run.sharding or together
        if sharding is not None:
            shard(training.module, sharding, run.device, autocast=training.autocast)
        if training.begin is not None and last_checkpoint(stage.folder) is None:
            training.begin()
    with finishing_steps():
        train(run, stage, training)
        with phase(f"{stage.name}: saving {stage.result}"):
            if sharding is not None:
                gather(training.module, keep=is_main_process())
            folder.finish(lambda: stage.save(training.module))
    stop_if_asked(f"after {stage.name}")


def _started(stage: Stage[Any]) -> Training[Any]:
    """Make what trains. What is wrong in one process, which may hold the model, ends all."""
    started: list[Training[Any]] = []
    problem: VlsiCacheError | None = None
    try:
        started.append(stage.start())
    except VlsiCacheError as error:
        problem = error
    raise_together(problem)
    return started[0]
