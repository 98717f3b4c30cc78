"""``LocalPlace``: a folder of this machine, or of a shared file system."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from vlsi_cache.errors import CacheAccessError, CacheError
from vlsi_cache.foldercontents import find_folder_contents
from vlsi_cache.store.places.place import Place
from vlsi_cache.store.places.walking import MEND_LINK, unreadable, validate_regular, walk_files

__all__ = ["LocalPlace"]

_SUFFIX: Final = ".partial"
_STAGING: Final = re.compile(rf"\..+\.[0-9a-f]{{32}}{re.escape(_SUFFIX)}")
_NOT_SHARED: Final = frozenset(
    {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP}
)
"""The two are on different disks, or the file system has no links, or no more of them."""
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@final
@dataclass(frozen=True, slots=True)
class LocalPlace(Place):
    """A folder. Files are filled under another name, flushed to disk and linked to their own."""

    path: Path
    """The folder. It may be missing until something is published."""

    def locate(self, key: str = "") -> str:
        """Return the path."""
        return str(self.path / key)

    def validate_usable(self) -> None:
        """Refuse a file."""
        status = _status(self.path)
        if status is not None and not stat.S_ISDIR(status.st_mode):
            raise CacheError("is a file, not a folder", where=self.path, mend="Choose another path")

    def describe(self) -> str | None:
        """Return what the names of the folder say."""
        try:
            return find_folder_contents(self.path).words
        except OSError:
            return None

    def list_files(self, folder: str = "") -> dict[str, int]:
        """Walk over the folder."""
        return dict(sorted(walk_files(self.path, folder)))

    def size(self, key: str) -> int | None:
        """Return the bytes of a file."""
        status = _status(self.path / key)
        if status is None:
            return None
        validate_regular(status, self.path / key)
        return status.st_size

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Read part of a file by ``pread``."""
        file = self.path / key
        # Opened for every read, so nothing is to be closed, counted or shared with other processes.
        try:
            # a pipe would wait for ever for someone to write into it, and so would some devices
            descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                validate_regular(os.fstat(descriptor), file)
                return _read(descriptor, start, stop - start)
            finally:
                os.close(descriptor)
        except OSError as error:
            status = _status(file)
            if status is None:
                raise CacheError("file is missing", where=file) from None
            validate_regular(status, file)
            raise unreadable(file, error) from error

    def publish(self, key: str, content: bytes) -> bool:
        """Fill a file under another name, flush and link it, then flush the folder."""
        target = self.path / key
        try:
            self._make_folder(target.parent)
            with _staged(target) as staging:
                with staging.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                try:
                    os.link(staging, target)  # unlike rename, it never replaces a file
                except FileExistsError:
                    return False
            _sync(target.parent)
        except OSError as error:
            raise self._unpublished(target, len(content), error) from error
        return True

    def adopt(self, key: str, source: Place, source_key: str) -> bool:
        """Link the file, if it is on the same file system.

        Where the source has a link, the file that it leads to is linked.
        """
        if not isinstance(source, LocalPlace):
            return False
        target = self.path / key
        try:
            self._make_folder(target.parent)
            os.link((source.path / source_key).resolve(), target)
            _sync(target.parent)
        except FileExistsError:
            return True
        except OSError as error:
            if error.errno in _NOT_SHARED:
                return False
            raise self._unpublished(target, 0, error) from error
        return True

    def clear_leftovers(self, folders: Sequence[str]) -> None:
        """Delete the files that killed writers were filling. Their names show them.

        A living writer holds a lock on its file. The system drops the lock with the process, so
        a file that can be locked belongs to nobody.
        """
        pattern = f".*{_SUFFIX}"
        below = (Path(self.path, folder).rglob(pattern) for folder in folders)
        for leftover in itertools.chain(self.path.glob(pattern), *below):
            if not _STAGING.fullmatch(leftover.name):
                continue
            # Errors mean: it vanished, its writer holds it, or the file system has no locks.
            with contextlib.suppress(OSError):
                descriptor = os.open(leftover, os.O_RDONLY | os.O_NONBLOCK)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    leftover.unlink()
                finally:
                    os.close(descriptor)

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            _sync(folder.parent)

    def _unpublished(self, target: Path, num_bytes: int, error: OSError) -> CacheError:
        if error.errno in _NO_ROOM:
            return CacheError(
                f"no room for {num_bytes:,} bytes ({error.strerror})",
                where=target,
                found=f"{_free_bytes(self.path):,} bytes free",
                mend="Make room, then run the same command again: what is published is whole, and "
                "it goes on from there",
            )
        return CacheError(
            f"file cannot be written ({error.strerror})",
            where=target,
            mend="Check the path and its permissions; the file system must know hard links",
        )


def _status(path: Path) -> os.stat_result | None:
    """Return what the system says of a path, or None if nothing lies there."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise CacheAccessError(
                "is a link that leads nowhere", where=path, mend=MEND_LINK
            ) from None
        return None
    except OSError as error:
        raise unreadable(path, error) from error


@contextlib.contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """Make a file beside ``target``, locked against deletion, and delete it at the end."""
    while True:
        staging = target.with_name(f".{target.name}.{uuid.uuid4().hex}{_SUFFIX}")
        staging.touch()
        try:
            lock = os.open(staging, os.O_RDONLY)
        except FileNotFoundError:
            continue
        # a file system without locks: then nobody deletes leftovers
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        if staging.exists():
            break
        os.close(lock)  # deleted before it was locked: once more
    try:
        yield staging
    finally:
        staging.unlink(missing_ok=True)
        os.close(lock)


def _read(descriptor: int, start: int, count: int) -> bytes:
    pieces = []
    while count > 0:
        piece = os.pread(descriptor, count, start)  # the system may return less than asked for
        if not piece:
            break
        pieces.append(piece)
        start, count = start + len(piece), count - len(piece)
    return b"".join(pieces)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(path if path.is_dir() else path.parent).free
