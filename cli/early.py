"""Slips that show before anything is imported that takes seconds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from vlsi_cache.errors import CacheError, ModelError, StageError
from vlsi_cache.nearby import nothing_at, perhaps

__all__ = [
    "validate_cache_there",
    "validate_folder_there",
    "validate_verbalizers_there",
    "validate_writable",
]

_TRAINED: Final = "Leave teacher.verbalizers (or student.verbalizers) out to train them"


def validate_cache_there(path: str | Path) -> None:
    """Refuse a cache on this disk that is not there. Whether it is sound, a later look says.

    Raises:
        CacheError: there is none.
    """
    if "://" in str(path) or Path(path).exists():
        return
    raise CacheError(
        "no cache here",
        where=path,
        found=nothing_at(path),
        mend=perhaps(path, "Check the path, or run dump-teacher to make it", folder=True),
    )


def validate_verbalizers_there(folder: Path | None) -> None:
    """Refuse a folder of trained verbalizers that is not there.

    Raises:
        ModelError: there is none.
    """
    if folder is not None and not folder.is_dir():
        raise ModelError(
            "no trained verbalizers here",
            where=folder,
            expected="a folder with verbalizers.json",
            found="a file" if folder.exists() else nothing_at(folder),
            mend=perhaps(folder, _TRAINED, folder=True),
        )


def validate_folder_there(folder: Path, mend: str) -> None:
    """Refuse a folder that is not there.

    Args:
        folder: a run, a student or a cache.
        mend: the advice where no other name is near.

    Raises:
        ModelError: there is none.
    """
    if not folder.is_dir():
        raise ModelError(
            "this is a file, and a folder is wanted" if folder.exists() else "no such folder",
            where=folder,
            found=None if folder.exists() else nothing_at(folder),
            mend=mend if folder.exists() else perhaps(folder, mend, folder=True),
        )


def validate_writable(folder: Path, flag: str) -> None:
    """Refuse a folder that is a file, or that could not be made or written.

    Args:
        folder: where a command writes. It need not be there yet.
        flag: the flag that names it.

    Raises:
        StageError: it cannot be written.
    """
    there = next((one for one in (folder, *folder.absolute().parents) if one.exists()), folder)
    if not there.is_dir():
        what = "this is a file, and a folder is wanted"
        raise StageError(what, where=there, mend=f"Choose another {flag}")
    if not os.access(there, os.W_OK | os.X_OK):
        what = "nothing can be written in this folder"
        raise StageError(
            what, where=there, mend=f"Choose another {flag}, or change its permissions"
        )
