"""Checkpoints of a stage, and the ordinary checkpoint that comes out of it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from vlsi_cache.errors import StageError
from vlsi_cache.files import read_file, share_weights, write_whole
from vlsi_cache.models import load_processor_of
from vlsi_cache.recipe import ModelSection
from vlsi_cache.training.folders.writing import plain_write_errors

__all__ = [
    "best_of",
    "discard_checkpoints",
    "epochs_of",
    "is_after_last_step",
    "last_checkpoint",
    "processes_of",
    "remove_torn_checkpoints",
    "renumber",
    "save_model",
    "state_of",
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
def whole_checkpoint(folder: Path, step: int, kept: Path | None = None) -> Iterator[None]:
    """Write a checkpoint inside. It is removed if it fails, and old ones are if it does not.

    Args:
        folder: the stage's folder.
        step: the checkpoint's step.
        kept: an old one that is not removed.

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
        if old != kept:
            shutil.rmtree(old, ignore_errors=True)


def processes_of(checkpoint: Path) -> int:
    """Return how many processes trained until a checkpoint."""
    return max(sum(1 for _ in checkpoint.glob("rng_state_*.pth")), 1)


def epochs_of(checkpoint: Path) -> float:
    """Return how many epochs were trained until a checkpoint."""
    return float(state_of(checkpoint)["epoch"])


def is_after_last_step(checkpoint: Path) -> bool:
    """Report whether a checkpoint has all steps of its stage."""
    state = state_of(checkpoint)
    return 0 < int(state.get("max_steps", 0)) <= int(state["global_step"])


def state_of(checkpoint: Path) -> dict[str, Any]:
    """Return the Trainer's state at a checkpoint."""
    state: dict[str, Any] = json.loads(read_file(checkpoint / _STATE))
    return state


def best_of(checkpoint: Path) -> Path | None:
    """Return the best checkpoint until this one, which lies beside it, if one is kept."""
    recorded = state_of(checkpoint).get("best_model_checkpoint")
    return None if recorded is None else checkpoint.with_name(Path(recorded).name)


def renumber(checkpoint: Path, step: int) -> None:
    """Give the last checkpoint another step, and remove those of later ones.

    It is whole under the one name or the other at any moment. The best one until then gets a step
    before it, if its own is not.

    Raises:
        OSError: a file cannot be written.
        StageError: files of the user's are in the way.
    """
    target = checkpoint.with_name(f"checkpoint-{step}")
    if target == checkpoint:
        return
    _validate_replaceable(target)
    for path in _numbered(checkpoint.parent):
        if _step(path) > step and _is_whole(path):
            _validate_replaceable(path)  # it would stay, and be the last one again
    best, changes = best_of(checkpoint), {}
    if best == checkpoint:
        changes["best_model_checkpoint"] = str(target)
    elif best is not None and _step(best) >= step:  # or those of later steps would go with it
        moved = _free_before(target)
        _copy(best, moved, {**_steps_at(best, moved), "best_model_checkpoint": str(moved)})
        changes["best_model_checkpoint"] = str(moved)
    _copy(checkpoint, target, {**_steps_at(checkpoint, target), **changes})
    for path in _own_checkpoints(checkpoint.parent):
        if _step(path) > step:
            shutil.rmtree(path)


def _steps_at(checkpoint: Path, target: Path) -> dict[str, int]:
    """Return the step of a checkpoint's new name, and as many steps in all, in proportion.

    What was not the last step does not become it.
    """
    state, step = state_of(checkpoint), _step(target)
    before, most = int(state["global_step"]), int(state.get("max_steps", 0))
    is_last = is_after_last_step(checkpoint)
    in_all = step if is_last else max(-(-most * step // max(before, 1)), step + 1)
    return {"global_step": step, "max_steps": in_all}


def _validate_replaceable(path: Path) -> None:
    """Refuse to replace what the user put there.

    Raises:
        StageError: something other than a checkpoint of the stage's own is there.
    """
    if not _is_replaceable(path):
        raise StageError(
            "this is in the way of a checkpoint that gets another step's number, and holds files "
            "that are not the stage's own",
            where=path,
            mend="Move it elsewhere, or go on with as many processes as before",
        )


def _free_before(target: Path) -> Path:
    """Return the latest name before a checkpoint's where nothing of the user's is.

    Raises:
        StageError: there is none.
    """
    names = [target.with_name(f"checkpoint-{step}") for step in reversed(range(_step(target)))]
    free = [name for name in names if _is_replaceable(name)]
    if not free:
        _validate_replaceable(names[0])
    return free[0]


def _is_replaceable(path: Path) -> bool:
    """Report whether nothing is there, or a checkpoint of the stage's own."""
    return not os.path.lexists(path) or (path.is_dir() and not path.is_symlink() and _is_own(path))


def _copy(checkpoint: Path, target: Path, changes: Mapping[str, Any]) -> None:
    """Copy a checkpoint to another name, with changes of its state. It appears whole."""
    fresh = checkpoint.with_name(".renumbered")
    shutil.rmtree(fresh, ignore_errors=True)  # an interruption may have left it
    fresh.mkdir()
    for file in checkpoint.iterdir():
        if _FILES.fullmatch(file.name) and file.name != _STATE:
            shutil.copyfile(file, fresh / file.name)
    state = {**state_of(checkpoint), **changes}
    write_whole(fresh / _STATE, json.dumps(state, indent=2) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)


def save_model(model: Any, source: ModelSection, folder: Path, card: str | None = None) -> None:
    """Write a model and its processor as an ordinary checkpoint.

    Everything is written beside ``folder`` and moved there at the end, so that a folder that
    appears is whole.

    Args:
        model: the model to save.
        source: names its processor, which is loaded again. One that was used would save how it
            padded.
        folder: where the checkpoint goes; files of the same names are replaced.
        card: text of its README.md, if it gets one.

    Raises:
        StageError: a file cannot be written.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # an interrupted run may have left it
    try:
        with plain_write_errors(folder):
            model.save_pretrained(partial)
            share_weights(partial)
            load_processor_of(source).save_pretrained(partial)
            if card is not None:
                (partial / "README.md").write_text(card, encoding="utf-8")
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
    return sorted(found, key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.name.split("-")[1])


def _is_own(path: Path) -> bool:
    """Report whether the Trainer alone has written here: what the user puts there is kept."""
    try:
        return all(file.is_file() and _FILES.fullmatch(file.name) for file in path.iterdir())
    except FileNotFoundError:  # another process has removed it
        return False


def _is_whole(path: Path) -> bool:
    """Report whether the last file that is written is there, and is of this step."""
    try:
        state = json.loads(read_file(path / _STATE))
    except (OSError, ValueError):
        return False
    step = state.get("global_step") if isinstance(state, dict) else None
    return step == _step(path) and (path / _WEIGHTS).is_file()
