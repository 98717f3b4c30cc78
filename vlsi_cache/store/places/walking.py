"""Listing a folder of this machine: what lies there, or an error that names it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vlsi_cache.errors import CacheAccessError
from vlsi_cache.store.places.keys import CACHE_FOLDERS

__all__ = ["MEND_LINK", "unreadable", "validate_regular", "walk_files"]

MEND_LINK: Final = "Make the link lead somewhere again"

_KINDS: Final = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_SUFFIXES: Final = (".json", ".zip")
"""Endings of files' names. A folder under such a name stands where a file should."""


def walk_files(place: Path, folder: str) -> Iterator[tuple[str, int]]:
    """Yield key and bytes of everything below a folder that is not a folder itself.

    What cannot be read as a file is listed with 0 bytes, so that reading it names it. So is a link
    to a folder: it may lead to a whole disk. Only a cache's own folders may be links.

    Args:
        place: path to which keys are relative.
        folder: key of the folder. Nothing is yielded if it does not exist.

    Raises:
        CacheAccessError: a folder cannot be listed, or leads back to itself.
    """
    yield from _walk(place / folder, folder, _identities(place) if folder else ())


def _identities(place: Path) -> tuple[tuple[int, int], ...]:
    with contextlib.suppress(OSError):
        status = place.stat()
        return ((status.st_dev, status.st_ino),)
    return ()


def _walk(path: Path, key: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, int]]:
    try:
        status = path.stat()
        with os.scandir(path) as scanned:
            entries = [entry for entry in scanned if not entry.name.startswith(".")]
    except FileNotFoundError:
        if not path.is_symlink():
            return  # nothing is published there yet, or it vanished meanwhile
        raise CacheAccessError("is a link that leads nowhere", where=path, mend=MEND_LINK) from None
    except NotADirectoryError:
        is_inside = bool(key) and path.parent.is_dir()
        mend = "Move the file away" if is_inside else "A cache is a folder: give that"
        raise CacheAccessError("is a file, not a folder", where=path, mend=mend) from None
    except OSError as error:
        raise CacheAccessError(
            f"folder cannot be listed ({error.strerror})",
            where=path,
            mend="Check permissions, links and the disk's health. Nothing is known to be lost",
        ) from error
    own = (status.st_dev, status.st_ino)
    if own in above:
        raise CacheAccessError("folder leads back to itself", where=path, mend="Delete the link")
    for entry in entries:
        yield from _walk_entry(entry, f"{key}/{entry.name}" if key else entry.name, (*above, own))


def _walk_entry(
    entry: os.DirEntry[str], key: str, above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, int]]:
    try:
        status = entry.stat()
    except OSError:
        # a file may vanish meanwhile, as leftovers do; a link that leads nowhere stays
        if os.path.lexists(entry.path):
            yield key, 0
        return
    if not stat.S_ISDIR(status.st_mode):
        yield key, status.st_size if stat.S_ISREG(status.st_mode) else 0
        return
    if (
        entry.is_symlink()
        and key not in CACHE_FOLDERS
        and (status.st_dev, status.st_ino) not in above
    ):
        yield key, 0
        return
    if key.endswith(_SUFFIXES):
        yield key, 0
    yield from _walk(Path(entry.path), key, above)


def validate_regular(status: os.stat_result, path: Path) -> None:
    """Refuse what is not a file of bytes. Reading a pipe or a device may never end.

    Raises:
        CacheAccessError: it is a folder, a pipe, a socket or a device.
    """
    if stat.S_ISREG(status.st_mode):
        return
    kind = next((kind for test, kind in _KINDS if test(status.st_mode)), "something else")
    raise CacheAccessError(
        f"is {kind}, not a file",
        where=path,
        mend="Move it away, and restore the file from a copy or write it again",
    )


def unreadable(path: Path, error: OSError) -> CacheAccessError:
    """Return the error of a file that the system does not read."""
    return CacheAccessError(
        f"file cannot be read ({error.strerror})",
        where=path,
        mend="Check permissions, links and the disk's health. The file may be whole",
    )
