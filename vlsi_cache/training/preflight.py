"""Whether results can be written, found out before anything is loaded."""

from __future__ import annotations

import os
from pathlib import Path

from vlsi_cache.errors import StageError

__all__ = ["validate_output"]


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
