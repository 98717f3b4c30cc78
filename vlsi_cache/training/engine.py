"""``run_stage``: begin, train, save, finish, discard; written once for every stage."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from vlsi_cache.training.folder import StageFolder, one_job_at_a_time
from vlsi_cache.training.module import StageModule
from vlsi_cache.training.run import Run
from vlsi_cache.training.stage import Stage
from vlsi_cache.training.trainer import train

__all__ = ["run_stage"]

M = TypeVar("M", bound=StageModule)


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
        StageError: the folder holds a stage made with other settings, or training diverged.
    """
    folder = StageFolder(stage.folder, stage.settings, stage.result / stage.config)
    folder.validate_settings()  # a job with other settings need not wait to be refused
    with one_job_at_a_time(stage.folder):
        if folder.enter():
            training = stage.start()
            train(run, stage, training)
            folder.finish(lambda: stage.save(training.module))
        folder.leave()
    return stage.result
