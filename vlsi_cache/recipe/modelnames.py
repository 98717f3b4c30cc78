"""Names of models: whether one is a folder, or can be a name on the Hugging Face hub."""

from __future__ import annotations

import os
import re
from itertools import chain
from pathlib import Path
from typing import Final

from vlsi_cache.errors import ModelError
from vlsi_cache.nearby import nothing_at, perhaps
from vlsi_cache.recipe.section import at_home

__all__ = ["is_there", "looks_local", "validate_model_files", "validate_model_folder"]

_STUDENT: Final = "student"
"""The folder of a run that holds its result."""
_FEW: Final = 3
"""Folders that an error names."""
_MOST_NAME_CHARACTERS: Final = 500
"""A longer name is no name, and not printed whole."""
_URL: Final = re.compile(r"([\w+.-]+)://|(?:www\.)?(?:huggingface\.co|hf\.co)/", re.IGNORECASE)
_PART: Final = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_ON_HUB: Final = re.compile(
    rf"(?:hf://|(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/)(?:models/)?({_PART}/{_PART})"
    r"(?:/(?:tree|blob|resolve)/([^/?#]+))?",
    re.IGNORECASE,
)
_HUB_NAME: Final = re.compile(rf"{_PART}(?:/{_PART})?")
_AT_REVISION: Final = re.compile(rf"({_PART}/{_PART})[@:]([\w./-]+)")
_WINDOWS: Final = re.compile(r"[A-Za-z]:[\\/]|.*\\")
_DATASETS: Final = re.compile(r"(?:hf://|(?:https?://)?huggingface\.co/)?datasets/")
_FOLDER_OR_NAME: Final = "Give the folder that save_pretrained wrote, or a name on the hub"
_GGUF: Final = ".gguf"
_TEMPLATES: Final = "additional_chat_templates"
"""The one subfolder of a model that is read."""


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder."""
    try:
        return path.exists()
    except (OSError, ValueError):  # such as a name that is too long, or that holds a NUL byte
        return False


def looks_local(name: str) -> bool:
    """Whether the name of a model can be a path alone. A hub name is "model" or "owner/model"."""
    return (
        not name
        or name.startswith((".", "~", os.sep))
        or name.count("/") > 1
        or is_there(Path(name))
    )


def validate_model_folder(name: str) -> None:
    """Refuse a name that is neither a folder nor one that a model on the hub can have.

    Raises:
        ModelError: there is no such folder, and no such name.
    """
    path = Path(at_home(name))
    if not name.strip():
        raise ModelError("the name of the model is empty", where="model", mend=f"{_FOLDER_OR_NAME}")
    if not is_there(path):
        _validate_absent(name, path)
    elif not path.is_dir():
        _validate_file(name, path)
    validate_model_files(path)
    inside = _models_inside(path)
    if inside:
        raise ModelError(
            "this folder is not a model, and folders in it are",
            where=name,
            expected="a config.json",
            found=", ".join(inside[:_FEW]) + (" …" if len(inside) > _FEW else ""),
            mend="Give the folder of one model, such as "
            f"{path / min(inside, key=lambda found: (found != _STUDENT, found))}",
        )


def validate_model_files(folder: Path) -> None:
    """Refuse a pipe or a device in the place of a model's file: reading it might never end.

    Links are followed. Nothing is opened, and what is not there is left to those who read it.

    Raises:
        ModelError: there is one. The error names it.
    """
    for path in chain(_special_files(folder), _special_files(folder / _TEMPLATES)):
        raise ModelError(
            f"{path.name} is a pipe or a device, not a file",
            where=path,
            mend="Copy the model's own file in its place, or remove it",
        )


def _special_files(folder: Path) -> list[Path]:
    """Return what is neither a file nor a folder, in the order of names. Hidden names are not."""
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not entry.name.startswith(".")]
        found = [entry.path for entry in shown if not entry.is_file() and not entry.is_dir()]
    except OSError:
        return []
    return sorted(path for path in map(Path, found) if is_there(path))


def _validate_file(name: str, path: Path) -> None:
    """Refuse a file. One of GGUF is refused where a model is loaded, with what to do."""
    if name.endswith(_GGUF):
        return
    is_of_model = (path.parent / "config.json").is_file()
    raise ModelError(
        "a model is a folder, and this is a file",
        where=name,
        mend=f"Give its folder: {path.parent}" if is_of_model else _FOLDER_OR_NAME,
    )


def _validate_absent(name: str, path: Path) -> None:
    """Refuse a name at which nothing lies, unless it may be one on the hub."""
    where = name if len(name) <= _MOST_NAME_CHARACTERS else f"{name[: _FEW * 20]} …"
    slip = _slip(name)
    if slip is not None:
        what, mend = slip
        raise ModelError(what, where=where, mend=mend)
    if name.endswith(_GGUF):
        return
    if looks_local(name):
        raise ModelError(
            "there is no such model folder",
            where=where,
            found=nothing_at(path) if len(name) <= _MOST_NAME_CHARACTERS else None,
            mend=perhaps(path, _FOLDER_OR_NAME, folder=True),
        )
    if not _HUB_NAME.fullmatch(name) or max(map(len, name.split("/"))) > 96:
        raise ModelError(
            "this is neither a folder nor a name that a model on the hub can have",
            where=where,
            expected="a folder, or OWNER/MODEL of letters, digits, '-', '_' and '.'",
            found=nothing_at(path) if len(name) <= _MOST_NAME_CHARACTERS else None,
            mend=perhaps(path, _FOLDER_OR_NAME, folder=True),
        )


def _slip(name: str) -> tuple[str, str] | None:
    """Return what is wrong with a name that is known by its look, and how to mend it."""
    bare = name.strip().strip("'\"").strip()
    if bare != name:
        return "the name has blanks or quotes around it", f"Give {bare}"
    if _DATASETS.match(name):
        return "this is the name of a dataset, and a model is wanted", _FOLDER_OR_NAME
    if _URL.match(name):
        return _url_slip(name)
    at = _AT_REVISION.fullmatch(name)
    if at and not _WINDOWS.match(name):
        mend = f"Give {at[1]}, and {at[2]} as teacher.revision or student.revision"
        return "the name holds a revision", mend
    if _WINDOWS.match(name) and os.sep != "\\":
        return (
            "this is a path of Windows, which this system does not know",
            "Give the path that the folder has here, such as /mnt/c/… for C:\\…",
        )
    if name.endswith(".git"):
        return "the name ends in .git, as the address of a clone does", f"Give {name[:-4]}"
    if "$" in name:
        return "variables of the shell are not replaced in a recipe", "Write the path out"
    return None


def _url_slip(name: str) -> tuple[str, str]:
    on_hub = _ON_HUB.match(name)
    scheme = name.partition("://")[0] if "://" in name else None
    if on_hub:
        revision = f", and {on_hub[2]} as the model's revision" if on_hub[2] else ""
        return "a model on the hub is given by its name alone", f"Give {on_hub[1]}{revision}"
    if scheme == "file":
        return "a folder is given by its path alone", f"Give {name.partition('://')[2]}"
    return f"models are not read from {scheme or 'addresses'}", "Download it, and give the folder"


def _models_inside(path: Path) -> list[str]:
    """Return the names of subfolders that hold models, where the folder itself holds none."""
    known = ("config.json", "adapter_config.json", "processor_config.json", "tokenizer.json")
    if not is_there(path) or any((path / name).is_file() for name in known):
        return []
    try:
        found = [*path.glob("*/config.json"), *path.glob("*/*/config.json")]
        found += path.glob("*/adapter_config.json")
    except OSError:
        return []
    return sorted({str(config.parent.relative_to(path)) for config in found})
