"""What to do about a sample that cannot be read, and about a stage that ended badly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from vlsi_cache.errors import DataError
from vlsi_cache.recipe import Recipe

__all__ = ["ADVICE", "advising", "folders_to_delete"]

ADVICE = "`vlsi-cache check` lists all such rows before a run, and --on-error skip leaves them out"


@contextmanager
def advising() -> Iterator[None]:
    """Add the advice to the error of a sample that cannot be read."""
    try:
        yield
    except DataError as error:
        raise _advised(error) from error


def _advised(error: DataError) -> DataError:
    mend = error.mend or ""
    return DataError(
        error.what,
        where=error.where,
        expected=error.expected,
        found=error.found,
        mend=f"{mend.rstrip('.')}. {ADVICE}" if mend else ADVICE,
    )


def folders_to_delete(
    recipe: Recipe, role: Literal["teacher", "student"], stage: str, folder: Path
) -> str:
    """Name the folders that go before a stage trains again: its own, and those that build on it.

    Args:
        recipe: the recipe.
        role: the model that the command works on.
        stage: name of the stage.
        folder: the stage's folder, for a stage that is not of a recipe.
    """
    folders = recipe.student_folders
    if stage not in folders:
        return str(folder)
    own: list[Path | str] = [recipe.teacher_verbalizers_path, recipe.cache_path]
    names = list(folders)
    later = [name for name in names[1:] if folders[name].exists()]
    if role == "student":
        position = names.index(stage)
        own, after = [folders[names[position]]], names[position + 1 :]
        later = [name for name in after if name in recipe.stages or folders[name].exists()]
    own += [folders[name] for name in later]
    *first, last = map(str, own)
    return f"{', '.join(first)} and {last}" if first else last
