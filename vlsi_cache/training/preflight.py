"""Cheap checks before anything is loaded, whose problems are reported together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from vlsi_cache.errors import RecipeError, StageError, VlsiCacheError

__all__ = ["validate_output", "validate_together"]


def validate_together(checks: Iterable[Callable[[], object]]) -> None:
    """Run all checks, and report the problems of all.

    Raises:
        VlsiCacheError: a check has failed. With several, the error has the text of each.
    """
    found: list[VlsiCacheError] = []
    for check in checks:
        try:
            check()
        except VlsiCacheError as error:
            if str(error) not in map(str, found):
                found.append(error)
    if len(found) == 1:
        raise found[0]
    if found:
        listing = " ".join(f"({number}) {error}" for number, error in enumerate(found, 1))
        # A problem outside the recipe decides the exit code.
        only_recipe = all(isinstance(error, RecipeError) for error in found)
        kind = RecipeError if only_recipe else StageError
        raise kind(f"{len(found)} problems: {listing}") from found[0]


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
