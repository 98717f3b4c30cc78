"""Cheap checks before anything is loaded, whose problems are reported together."""

from __future__ import annotations

import os
from pathlib import Path

from vlsi_cache.errors import RecipeError, StageError

__all__ = ["validate_launch", "validate_output"]

_LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def validate_output(folder: Path) -> None:
    """Refuse an output folder that cannot be written, or made.

    Raises:
        StageError: the folder, or the nearest one above it, is read-only or is a file.
    """
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        return
    raise StageError(
        "the output folder cannot be written",
        where=folder,
        found="a file" if not nearest.is_dir() else f"no permission to write in {nearest}",
        mend="Choose another --output",
    )


def validate_launch() -> None:
    """Refuse an environment that is half a launcher's.

    Raises:
        RecipeError: variables of a launch are missing beside others.
    """
    given = [name for name in _LAUNCH if name in os.environ]
    launched = "LOCAL_RANK" in given or os.environ.get("WORLD_SIZE", "1") != "1"
    missing = [name for name in _LAUNCH if name not in given]
    if launched and missing:
        raise RecipeError(
            "the environment is half a launcher's",
            where="environment",
            expected=", ".join(_LAUNCH),
            found=f"only {', '.join(given)}",
            mend="Start the command with torchrun or accelerate launch, or unset these variables",
        )
