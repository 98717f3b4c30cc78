"""Checkpoints of a stage, and the ordinary checkpoint that comes out of it."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from vlsi_cache.errors import StageError
from vlsi_cache.models import load_processor_of
from vlsi_cache.recipe import ModelSection
from vlsi_cache.training.folders.writing import plain_write_errors

__all__ = [
    "discard_checkpoints",
    "last_checkpoint",
    "remove_torn_checkpoints",
    "save_model",
    "whole_checkpoint",
]

logger = logging.getLogger(__name__)

_NAME: Final = re.compile(r"checkpoint-([0-9]{1,18})")
_FILES: Final = re.compile(
    r"model\.safetensors|(optimizer|scheduler|scaler)\.pt|rng_state(_[0-9]+)?\.pth"
    r"|training_args\.bin|trainer_state\.json|\.tmp\w+"
)
"""What the Trainer writes. A folder with anything else is the user's."""
_STATE: Final = "trainer_state.json"
_WEIGHTS: Final = "model.safetensors"
_NUM_KEPT: Final = 2


def last_checkpoint(folder: Path) -> Path | None:
    """Return the whole checkpoint of the latest step, if there is one.

    It may hold files of the user's beside the stage's own. Such a checkpoint is never deleted.
    """
    return next((path for path in _numbered(folder) if _is_whole(path)), None)


def remove_torn_checkpoints(folder: Path) -> None:
    """Remove the stage's checkpoints that an interruption left incomplete."""
    for path in _own_checkpoints(folder):
        if not _is_whole(path):
            logger.warning("removing %s: an interruption left it incomplete", path)
            shutil.rmtree(path)


def discard_checkpoints(folder: Path) -> None:
    """Free the space of a finished stage's checkpoints."""
    for path in _own_checkpoints(folder):
        shutil.rmtree(path, ignore_errors=True)  # a finished run's folder may be read-only


@contextlib.contextmanager
def whole_checkpoint(folder: Path, step: int) -> Iterator[None]:
    """Write a checkpoint inside. It is removed if it fails, and old ones are if it does not.

    Raises:
        StageError: a file cannot be written.
    """
    path = folder / f"checkpoint-{step}"
    try:
        with plain_write_errors(path):
            yield
    except StageError:
        if _is_own(path):
            shutil.rmtree(path, ignore_errors=True)  # it would keep the room that is missing
        raise
    for old in _own_checkpoints(folder)[_NUM_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def save_model(model: Any, source: ModelSection, folder: Path) -> None:
    """Write a model and its processor as an ordinary checkpoint.

    Everything is written beside ``folder`` and moved there at the end, so that a folder that
    appears is whole.

    Args:
        model: the model to save.
        source: names its processor, which is loaded again. One that was used would save how it
            padded.
        folder: where the checkpoint goes; files of the same names are replaced.

    Raises:
        StageError: a file cannot be written.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # an interrupted run may have left it
    try:
        with plain_write_errors(folder):
            model.save_pretrained(partial)
            load_processor_of(source).save_pretrained(partial)
            _move(partial, folder)
    except StageError:
        shutil.rmtree(partial, ignore_errors=True)  # it would keep the room that is missing
        raise


def _move(partial: Path, folder: Path) -> None:
    if not folder.exists():
        partial.rename(folder)
        return
    for stale in folder.glob("*.safetensors*"):
        stale.unlink()  # shards of another number would be loaded with the new ones
    for file in [path for path in partial.rglob("*") if path.is_file()]:
        target = folder / file.relative_to(partial)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
    shutil.rmtree(partial)


def _own_checkpoints(folder: Path) -> list[Path]:
    """Return the stage's own checkpoints, the latest first."""
    return [path for path in _numbered(folder) if _is_own(path)]


def _numbered(folder: Path) -> list[Path]:
    """Return the folders that are named like a checkpoint, the latest first."""
    found = [path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    found = [path for path in found if path.is_dir() and not path.is_symlink()]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True)


def _is_own(path: Path) -> bool:
    """Report whether the Trainer alone has written here: what the user puts there is kept."""
    try:
        return all(file.is_file() and _FILES.fullmatch(file.name) for file in path.iterdir())
    except FileNotFoundError:  # another process has removed it
        return False


def _is_whole(path: Path) -> bool:
    """Report whether the last file that is written is there, and is of this step."""
    try:
        state = json.loads((path / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    step = state.get("global_step") if isinstance(state, dict) else None
    return step == int(path.name.split("-")[1]) and (path / _WEIGHTS).is_file()
