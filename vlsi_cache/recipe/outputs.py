"""Whether a run may write where its recipe says, before anything is imported or loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vlsi_cache.contents import find_contents
from vlsi_cache.errors import StageError
from vlsi_cache.foldercontents import find_folder_contents
from vlsi_cache.recipe.existing import validate_together
from vlsi_cache.recipe.recipe import Recipe

__all__ = ["validate_outputs"]

_OUTPUT: Final = "the run's folder (--output, or output in the recipe)"
_CACHE: Final = "the cache (--cache, or cache.path in the recipe)"
_RESULTS: Final = ("a model", "an adapter of peft", "trained verbalizers", "a stage of a run")
_A_CACHE: Final = "a cache of vlsi-cache"
_A_RUN: Final = "the output of a run"
_EMPTY: Final = "an empty folder"


def validate_outputs(recipe: Recipe) -> None:
    """Refuse a run's folder that is a file, or that belongs to something else, and such a cache.

    Raises:
        StageError: one of them is. The error names it with its key.
    """
    checks = [lambda: _validate_output(recipe)]
    if recipe.cache.path is not None and "://" not in str(recipe.cache.path):
        checks.append(lambda: _validate_cache(Path(recipe.cache.path or "")))
    validate_together(checks)


def _validate_output(recipe: Recipe) -> None:
    output = recipe.output
    _refuse_file(output, _OUTPUT)
    for owner, folder in _owned(recipe):
        if _is_at(output, folder):
            raise StageError(
                f"{_OUTPUT} is {owner}",
                where=output,
                mend="Choose another --output: a run writes folders and files of its own",
            )
        if _is_inside(output, folder):
            raise StageError(
                f"{_OUTPUT} lies inside {owner}",
                where=output,
                found=folder,
                mend="Choose an --output outside it",
            )
    if recipe.student.model is not None and _is_at(recipe.student_path, Path(recipe.student.model)):
        raise StageError(
            "the student to train is the result that this run would write",
            where=recipe.student.model,
            mend="Choose another --output, or give the student that the run began with",
        )
    held = find_folder_contents(output).words if output.is_dir() else None
    if held in (*_RESULTS, _A_CACHE):
        raise StageError(
            f"{_OUTPUT} is taken: it holds {held}, and is not the folder of a run",
            where=output,
            mend="Choose another --output",
        )


def _validate_cache(path: Path) -> None:
    _refuse_file(path, _CACHE)
    held = find_folder_contents(path).words if path.is_dir() else None
    if held in _RESULTS:
        raise StageError(
            f"{_CACHE} cannot be here: this folder holds {held}",
            where=path,
            mend="Choose another --cache, such as a folder that is not there yet",
        )


def _refuse_file(path: Path, what: str) -> None:
    """Refuse a file where a folder is wanted, or on the way to it."""
    file = next((one for one in (path, *path.parents) if one.is_file()), None)
    if file is not None:
        inside = "is a folder" if file == path else f"is to be {path}"
        raise StageError(
            f"{what} {inside}, and this is a file",
            where=file,
            found=f"{file.stat().st_size:,} bytes of {find_contents(file).words}",
            mend="Give the path of a folder. It need not be there yet",
        )


def _owned(recipe: Recipe) -> Iterator[tuple[str, Path]]:
    """Yield the folders that hold something else, with the words for them."""
    for role in ("teacher", "student"):
        name = getattr(recipe, role).model
        if name is not None and Path(name).is_dir():
            yield f"the {role}'s own folder", Path(name)
    paths = [recipe.data.path, *(source.path for source in recipe.data.sources)]
    for path in paths:
        for name in [path] if isinstance(path, str) else path or []:
            if Path(name).is_dir():
                yield "the folder of the data", Path(name)
    if recipe.cache.path is not None and "://" not in str(recipe.cache.path):
        cache = Path(recipe.cache.path)
        if _may_be_a_cache(cache, recipe.output):
            yield "the cache's own folder", cache
    for above in recipe.output.resolve().parents:
        if (above / "manifest.json").is_file() and (above / "shards").is_dir():
            yield "a cache", above


def _may_be_a_cache(cache: Path, output: Path) -> bool:
    """Report whether a folder is a cache or can become one. What else it is, its reader says."""
    held = find_folder_contents(cache).words if cache.is_dir() else None
    if held in (None, _A_CACHE, _EMPTY):
        return True
    return _is_at(output, cache) and not str(held).startswith(_A_RUN)


def _is_at(path: Path, folder: Path) -> bool:
    return path.resolve() == folder.resolve()


def _is_inside(path: Path, folder: Path) -> bool:
    """Report whether a path lies in a folder. Who works in the folder means it so."""
    within = folder.resolve()
    return within in path.resolve().parents and within not in (
        Path.cwd().resolve(),
        *Path.cwd().resolve().parents,
    )
