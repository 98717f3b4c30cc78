"""Stage one of a few taps at a time, each group in a folder of its own inside the stage's."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlsi_cache.models import Backbone
from vlsi_cache.stagefiles import METRICS_FILE
from vlsi_cache.training import Run, Stage, StageFolder, run_stage
from vlsi_cache.training.folders.stage_folder import one_job_at_a_time
from vlsi_cache.training.processes import on_main_process
from vlsi_cache.verbalizer.bank import VerbalizerBank
from vlsi_cache.verbalizer.checkpoint import (
    VERBALIZERS_FILE,
    load_verbalizers,
    save_verbalizers,
)

__all__ = ["train_in_groups"]

logger = logging.getLogger(__name__)

_FOLDERS = "taps-*"


def train_in_groups(
    run: Run,
    backbone: Backbone,
    folder: Path,
    settings: Mapping[str, Any],
    stages: Sequence[Callable[[Path], Stage[Any]]],
) -> Path:
    """Train one group of taps after the other, and join their verbalizers.

    An interrupted training goes on at its group. The groups' folders go when all is joined.

    Args:
        run: what all stages share.
        backbone: the frozen model.
        folder: the stage's folder, which gets the result.
        settings: everything that the whole result depends on, as JSON values.
        stages: each makes the stage of one group, in the folder that it is given.

    Returns:
        The folder.

    Raises:
        StageError: a folder holds a stage made with other settings, or training diverged.
        Interrupted: a stop was asked for; a checkpoint is there.
    """
    whole = StageFolder(folder, settings, folder / VERBALIZERS_FILE)
    whole.validate_settings()
    with one_job_at_a_time(folder):
        if whole.enter():
            joined = _joined(_trained(run, backbone, [make(folder) for make in stages]))
            whole.finish(lambda: save_verbalizers(joined, folder, backbone))
        else:
            logger.info("verbalization: finished before, nothing to do (%s)", folder)
        on_main_process(lambda: _remove_groups(folder))
        whole.leave()
    return folder


def _trained(
    run: Run, backbone: Backbone, stages: Sequence[Stage[Any]]
) -> Iterator[VerbalizerBank]:
    """Train group after group, and yield their verbalizers."""
    for number, stage in enumerate(stages, 1):
        logger.info("verbalization: group %d of %d", number, len(stages))
        folder = run_stage(run, stage)
        yield load_verbalizers(folder, backbone.decoder, fingerprint=backbone.fingerprint)


def _joined(banks: Iterable[VerbalizerBank]) -> VerbalizerBank:
    layers: dict[int, Any] = {}
    linear: dict[int, Any] = {}
    for bank in banks:
        settings = bank.settings
        layers |= {int(tap): part for tap, part in bank.layers.items()}
        linear |= {int(tap): part for tap, part in bank.linear.items()}
    return VerbalizerBank(layers, settings, linear)


def _remove_groups(folder: Path) -> None:
    for group in folder.glob(_FOLDERS):
        metrics = group / METRICS_FILE
        if metrics.is_file():
            metrics.replace(folder / f"{metrics.stem}-{group.name}{metrics.suffix}")
        shutil.rmtree(group, ignore_errors=True)
