"""Publishing: a file or folder appears whole or not at all, and stays after a power cut."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["publish_file", "publish_folder", "remove_leftovers"]

_SUFFIX = ".partial"


@contextlib.contextmanager
def publish_folder(path: Path) -> Iterator[Path]:
    """Fill a temporary folder, which becomes ``path`` in one step when the block ends.

    If another writer published ``path`` meanwhile, its folder stays and this one is dropped; if
    the block raises, nothing is published.

    Yields:
        The folder to fill, beside ``path``.
    """
    staging, lock = _stage(path, Path.mkdir)
    try:
        yield staging
        _sync_tree(staging)
        try:
            staging.rename(path)
        except OSError:
            if not path.is_dir():
                raise
        _sync(path.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(lock)


def publish_file(path: Path, content: bytes) -> bool:
    """Write a file that appears whole, unless it is there already.

    Returns:
        Whether this call published it; if not, the file that was there stays.
    """
    staging, lock = _stage(path, Path.touch)
    try:
        staging.write_bytes(content)
        _sync(staging)
        try:
            os.link(staging, path)  # unlike rename, refuses to replace what is there
        except FileExistsError:
            return False
        staging.unlink()
        _sync(path.parent)
        return True
    finally:
        staging.unlink(missing_ok=True)
        os.close(lock)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writers left behind in a folder.

    A living writer holds a lock on what it fills, and the system drops the lock with the process:
    what can be locked belongs to nobody.
    """
    for leftover in folder.glob(f".*{_SUFFIX}"):
        # gone meanwhile, locked by its writer, or on a file system without locks: left alone
        with contextlib.suppress(OSError):
            descriptor = os.open(leftover, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if leftover.is_dir():
                    shutil.rmtree(leftover)
                else:
                    leftover.unlink()
            finally:
                os.close(descriptor)


def _stage(path: Path, make: Callable[[Path], None]) -> tuple[Path, int]:
    """Make a temporary file or folder beside ``path``, and lock it against clearing away."""
    while True:
        staging = _staging_name(path)
        make(staging)
        try:
            lock = os.open(staging, os.O_RDONLY)
        except FileNotFoundError:
            continue
        with contextlib.suppress(OSError):  # no locks on this file system: nobody clears away
            fcntl.flock(lock, fcntl.LOCK_EX)
        if staging.exists():
            return staging, lock
        os.close(lock)  # cleared away between its making and its locking: once more


def _staging_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{_SUFFIX}")


def _sync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            _sync(Path(root, name))
        _sync(Path(root))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
