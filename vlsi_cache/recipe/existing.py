"""Whether what a recipe names is there, as far as it shows without any library."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

from vlsi_cache.contents import find_link
from vlsi_cache.errors import (
    DataError,
    ModelError,
    RecipeError,
    StageError,
    VlsiCacheError,
    excerpt,
)
from vlsi_cache.foldercontents import find_folder_contents
from vlsi_cache.nearby import nothing_at, perhaps
from vlsi_cache.recipe.modelnames import is_there, validate_model_folder
from vlsi_cache.recipe.models import ModelSection
from vlsi_cache.recipe.onhub import validate_data_on_hub, validate_downloadable
from vlsi_cache.recipe.recipe import Recipe
from vlsi_cache.recipe.sources import DataSection

__all__ = [
    "DATA_FORMS",
    "DATA_SUFFIXES",
    "expand_pattern",
    "model_name",
    "named_models",
    "validate_data_name",
    "validate_data_named",
    "validate_named",
    "validate_together",
    "validate_trackers",
]

DATA_FORMS: Final = (
    "a .jsonl, .json or .parquet file, a folder of datasets or Parquet, or a hub name"
)
Role = Literal["teacher", "student"]
DATA_SUFFIXES: Final = (
    ".jsonl",
    ".json",
    ".ndjson",
    ".gz",
    ".bz2",
    ".xz",
    ".zst",
    ".parquet",
    ".csv",
    ".tsv",
    ".txt",
    ".arrow",
    ".zip",
    ".tar",
    ".xlsx",
)
"""Suffixes of files. A hub name that ends so is the name of a file that is not there."""
_MOST_NAME_CHARACTERS: Final = 500
"""A longer name is data, and not printed whole."""
_VERBALIZERS: Final = "verbalizers.json"
_URL: Final = re.compile(r"(\w[\w+.-]*)://")
_ON_HUB: Final = re.compile(
    r"(?:hf://|https?://huggingface\.co/)(?:datasets/)?([\w-][\w.-]*/[\w.-]+)"
)
_WINDOWS: Final = re.compile(r"[A-Za-z]:[\\/]|.*\\")
_HUB_NAME: Final = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?(:[\w.-]+)?")


def expand_pattern(name: str) -> list[str]:
    """Return the name, with ``~`` as the user's home, or the files that a pattern stands for.

    Raises:
        DataError: no file has a name of the pattern.
    """
    # Path's own expanduser raises for a user that is not there.
    path = os.path.expanduser(name)  # noqa: PTH111
    if os.path.lexists(path) or not glob.has_magic(path):
        return [path]
    found = sorted(glob.glob(path, recursive=True))  # noqa: PTH207 (the pattern may be absolute)
    if not found:
        raise DataError("no file has a name of this pattern", where=excerpt(name))
    return found


def model_name(section: ModelSection, role: str) -> str:
    """Return the name of a section's model.

    Raises:
        RecipeError: no model is named.
    """
    if section.model is None:
        raise RecipeError(
            "no model is named",
            where=f"{role}.model",
            expected="a from_pretrained name or folder",
            mend=f"Give --{role} MODEL, or set {role}.model in the recipe",
        )
    return section.model


def named_models(recipe: Recipe) -> dict[Role, ModelSection]:
    """Return the models that a recipe names, by their roles.

    Raises:
        RecipeError: it names none.
    """
    sections: dict[Role, ModelSection] = {"teacher": recipe.teacher, "student": recipe.student}
    named = {role: section for role, section in sections.items() if section.model is not None}
    if not named:
        raise RecipeError(
            "no model is named",
            where="teacher.model and student.model",
            expected="at least one of them, for its processor",
            mend="Give --teacher MODEL or --student MODEL, or set them in the recipe",
        )
    return named


def validate_data_named(section: DataSection) -> None:
    """Refuse a section that names no data.

    Raises:
        RecipeError: it names none.
    """
    if section.path is None and not section.sources:
        raise RecipeError(
            "no data is named",
            where="data.path",
            expected="a JSON or JSONL file, a datasets folder or a hub name",
            mend="Give --data PATH, or set data.path in the recipe",
        )


def validate_data_name(name: str) -> None:
    """Refuse a name of data that is neither a path nor a name on the hub.

    Raises:
        DataError: there is no such file or folder.
    """
    path = Path(name)
    if not name.strip() or name == "-":
        raise _no_data(name)
    if _is_local(name):
        return
    is_hub_name = _HUB_NAME.fullmatch(name) and len(name) <= _MOST_NAME_CHARACTERS
    is_beside_files = "/" in name and is_there(path.parent)
    if not is_hub_name or path.suffix.lower() in DATA_SUFFIXES or is_beside_files:
        raise _no_data(name)


def _is_local(name: str) -> bool:
    """Whether a name is a path here, with the name of a part behind it or without."""
    base, _, _ = name.rpartition(":")
    return is_there(Path(name)) or bool(base and is_there(Path(base)))


def _slip(name: str) -> tuple[str, str] | None:
    """Return what is wrong with a name of data that is known by its look, and how to mend it."""
    bare = name.strip().strip("'\"").strip()
    if not bare:
        return "the name of the data is empty", f"Give {DATA_FORMS}"
    if bare != name:
        return "the name has blanks or quotes around it", f"Give {bare}"
    if name == "-":
        return "data is not read from a pipe", "Write it into a file"
    parts = name.split(",")
    if len(parts) > 1 and all(is_there(Path(part.strip())) for part in parts):
        return "several files are given as a list", f"Set data.path to [{', '.join(parts)}]"
    if "$" in name:
        return "variables of the shell are not replaced in a recipe", "Write the path out"
    if _WINDOWS.match(name) and os.sep != "\\":
        return (
            "this is a path of Windows, which this system does not know",
            "Give the path that the file has here, such as /mnt/c/… for C:\\…",
        )
    return None


def _no_data(name: str) -> DataError:
    where = (name if len(name) <= _MOST_NAME_CHARACTERS else excerpt(name)) or "data"
    if (slip := _slip(name)) is not None:
        return DataError(slip[0], where=where, mend=slip[1])
    if url := _URL.match(name):
        on_hub = _ON_HUB.match(name)
        return DataError(
            f"data is not read from {url.group(1)}://",
            where=where,
            expected=DATA_FORMS,
            mend=f"Give the name on the hub alone: {on_hub.group(1)}" if on_hub else "Download it",
        )
    if link := _link_at(name):
        return DataError("this is not data", where=where, found=link, mend=f"Give {DATA_FORMS}")
    is_path = len(name) <= _MOST_NAME_CHARACTERS and not name.startswith("~")
    return DataError(
        "there is no such data file or folder",
        where=where,
        found=nothing_at(name) if is_path else None,
        mend=perhaps(name, f"Give {DATA_FORMS}"),
    )


def _link_at(name: str) -> str | None:
    try:
        return find_link(Path(name))
    except OSError:  # such as a name that is too long
        return None


def validate_named(recipe: Recipe, roles: Sequence[Role]) -> None:
    """Refuse models and data that are not named, or not there.

    Commands call it first, before they import what takes seconds.

    Args:
        recipe: description of the run.
        roles: the models that the command reads.

    Raises:
        VlsiCacheError: something is not named, or not there. One error has the problems of all.
    """
    checks: list[Callable[[], object]] = [lambda: _validate_data(recipe.data)]
    for role in roles:
        section = recipe.teacher if role == "teacher" else recipe.student
        checks.append(partial(_validate_model, section, role))
        checks.append(partial(_validate_verbalizers, section, role))
    validate_together(checks)


def _validate_model(section: ModelSection, role: str) -> None:
    name = model_name(section, role)
    validate_model_folder(name)
    if not is_there(Path(name)) and not name.endswith(".gguf"):
        validate_downloadable(name, section.revision)


def _validate_verbalizers(section: ModelSection, role: str) -> None:
    """Refuse a folder that is there and holds something else than trained verbalizers.

    Their own reader names a folder that is not there.
    """
    folder = section.verbalizers
    if folder is None or not is_there(folder) or (folder / _VERBALIZERS).exists():
        return
    inner = sorted(path.parent.name for path in folder.glob(f"*/{_VERBALIZERS}"))
    raise ModelError(
        "no trained verbalizers here",
        where=folder,
        expected=f"a folder with {_VERBALIZERS}",
        found=find_folder_contents(folder).words if folder.is_dir() else "a file",
        mend=f"Give {folder / inner[0]}"
        if inner
        else f"Leave {role}.verbalizers out to train them",
    )


def _validate_data(section: DataSection) -> None:
    validate_data_named(section)
    named = [(section.path, section.revision)]
    named += [(one.path, one.revision or section.revision) for one in section.sources]
    for paths, revision in named:
        for pattern in [paths] if isinstance(paths, str) else paths or []:
            for name in expand_pattern(pattern):
                validate_data_name(name)
                if not _is_local(name):
                    validate_data_on_hub(name, revision)


def validate_trackers(recipe: Recipe) -> None:
    """Refuse trackers that are not installed.

    Raises:
        RecipeError: the package of one is not there.
    """
    for name in recipe.report_to:
        try:
            found = find_spec(name)
        except (ImportError, ValueError):  # a module that is half imported
            found = None
        if found is None or found.origin is None:  # such as a folder of this name, with its runs
            raise RecipeError(
                "this tracker is not installed",
                where="report_to",
                found=name,
                mend=f"Run pip install {name}, or leave it out",
            )


def validate_together(checks: Sequence[Callable[[], object]]) -> None:
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
        # A problem outside the recipe decides the exit code.
        only_recipe = all(isinstance(error, RecipeError) for error in found)
        kind = RecipeError if only_recipe else StageError
        raise kind(f"{len(found)} problems", problems=found) from found[0]
