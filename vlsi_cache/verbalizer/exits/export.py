"""``export_exits``: the exits of a run, in a folder of their own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open

from vlsi_cache.errors import ModelError, StageError
from vlsi_cache.recipe.publicnames import public_name
from vlsi_cache.training.folders.writing import plain_write_errors
from vlsi_cache.verbalizer.checkpoint import (
    VERBALIZERS_FILE,
    WEIGHTS_FILE,
    VerbalizerConfig,
    read_config,
    write_config,
)
from vlsi_cache.verbalizer.exits.keeping import EXITS_FOLDER

__all__ = ["export_exits"]

_STUDENTS: Final = ("student", "interaction/model")
"""Students of a run, the latest first."""
_ALONE: Final = "student-verbalizers"
"""Where a run of stage one alone keeps what it trains."""
_FILES: Final = (WEIGHTS_FILE, VERBALIZERS_FILE)


def export_exits(source: Path, target: Path, *, replace: bool = False) -> VerbalizerConfig:
    """Copy the exits of a run's latest student.

    Args:
        source: the run's folder, a student's, or a folder of verbalizers.
        target: the new folder.
        replace: whether the exits in ``target`` may be replaced.

    Returns:
        What the exits say of themselves, with the model's folder. The new folder names the model by
        its last part alone, so that it can be shared.

    Raises:
        ModelError: there are none, or they are damaged.
        StageError: the target holds something else, or cannot be written.
    """
    found = _find_exits(source)
    config = read_config(found)
    _validate_weights(found, config)
    _validate_target(found, target, replace=replace)
    with plain_write_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        (target / VERBALIZERS_FILE).unlink(missing_ok=True)  # a folder with a config is whole
        shutil.copyfile(found / WEIGHTS_FILE, target / WEIGHTS_FILE)
        public = config.model_copy(update={"backbone": public_name(config.backbone)})
        write_config(public, target)
    return config


def _find_exits(source: Path) -> Path:
    """Return the folder of verbalizers that belong to the latest student here."""
    if not source.is_dir():
        raise ModelError("no such folder", where=source, mend="Name the folder of a run")
    for folder in (source, *(source / name for name in _STUDENTS)):
        for exits in (folder, folder / EXITS_FOLDER):
            if (exits / VERBALIZERS_FILE).is_file():
                return exits
        if (folder / "config.json").is_file():
            raise ModelError(
                "this student has no exits",
                where=folder,
                expected=f"{EXITS_FOLDER}/{VERBALIZERS_FILE}, which stage two leaves where taps "
                "are compared",
                mend="Train exits for it: train-student --stages verbalization with this student, "
                "student.verbalization.target=final, and another output folder",
            )
    if (source / _ALONE / VERBALIZERS_FILE).is_file():
        return source / _ALONE
    raise ModelError(
        "no exits here",
        where=source,
        expected=f"a run's folder, a student's, or one with {VERBALIZERS_FILE}",
        mend="Run train-student first",
    )


def _validate_weights(folder: Path, config: VerbalizerConfig) -> None:
    """Refuse weights that are cut off, or that lack a tap."""
    path = folder / WEIGHTS_FILE
    try:
        with safe_open(path, "pt") as weights:
            named = {name.split(".")[1] for name in weights.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, IndexError) as error:
        raise ModelError(
            f"verbalizer weights cannot be used ({error})", where=path, mend="Train them again"
        ) from error
    wanted = {str(tap) for tap in config.taps} if config.verbalizer.trains else set()
    if named != wanted:
        raise ModelError(
            "verbalizer weights are not those of the config beside them",
            where=path,
            expected=f"taps {', '.join(sorted(wanted)) or 'without weights'}",
            found=f"taps {', '.join(sorted(named)) or 'without weights'}",
            mend="Train them again",
        )


def _validate_target(found: Path, target: Path, *, replace: bool) -> None:
    """Refuse a target that would lose something."""
    if target.is_dir():
        others = sorted(path.name for path in target.iterdir())
        own = set(others) <= set(_FILES)
        if not others or (own and replace and target.resolve() != found.resolve()):
            return
        held = "the exits themselves" if target.resolve() == found.resolve() else others[0]
        mend = "Choose a new folder" + (", or give --replace" if own else "")
    elif target.exists():
        held, mend = "a file", "Choose a new folder"
    else:
        return
    raise StageError("the target is not an empty folder", where=target, found=held, mend=mend)
