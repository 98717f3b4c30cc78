"""``Place``: files that are published once, whole, and read in parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from vlsi_cache.errors import CacheError

__all__ = ["Place"]


class Place(ABC):
    """A folder of files by key, such as ``shards/00000.json``.

    The format needs nothing else of storage. A file appears in one step with all its bytes, unless
    one is there already. No file is ever changed. Names that begin with a dot belong to writers at
    work and are never listed.
    """

    @abstractmethod
    def locate(self, key: str = "") -> str:
        """Return the address of a file, or of the place itself, for people."""

    @abstractmethod
    def validate_usable(self) -> None:
        """Refuse a place in which no cache can be begun.

        Raises:
            CacheError: a file is in the way, or the place cannot be reached.
        """

    def describe(self) -> str | None:
        """Return what a folder holds that is not a cache, in words. None if it is not known."""
        return None

    @abstractmethod
    def list_files(self, folder: str = "") -> dict[str, int]:
        """Return key → bytes of every file below a folder, in the order of keys."""

    @abstractmethod
    def size(self, key: str) -> int | None:
        """Return the bytes of a file, or None if there is none."""

    @abstractmethod
    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Read the bytes of a file from ``start`` up to ``stop`` or its end.

        Raises:
            CacheError: the file is missing, or cannot be read.
        """

    @abstractmethod
    def publish(self, key: str, content: bytes) -> bool:
        """Publish a file, whole and durable, unless there is one.

        Returns:
            Whether this call published it. If not, the file that was there stays.

        Raises:
            CacheError: the disk is full, or permission is missing.
        """

    def adopt(self, key: str, source: Place, source_key: str) -> bool:
        """Publish a file of another place here too, without copying its bytes, unless there is
        one.

        Returns:
            Whether the file is here now. If not, the two places share no storage, and its bytes
            must be copied.

        Raises:
            CacheError: the file is missing, or permission is missing.
        """
        return False

    @abstractmethod
    def clear_leftovers(self, folders: Sequence[str]) -> None:
        """Delete the unpublished files of killed writers, but not of writers at work.

        The place must be known to be a cache.

        Args:
            folders: Folders of a cache. They are searched, and the place itself.
        """

    def read(self, key: str, *, limit: int) -> bytes:
        """Read a whole file.

        Raises:
            CacheError: the file is missing, or longer than ``limit``.
        """
        content = self.read_range(key, 0, limit + 1)
        if len(content) > limit:
            raise CacheError(
                "file is absurdly large",
                where=self.locate(key),
                expected=f"at most {limit:,} bytes",
                found=f"{self.size(key):,}",
                mend="Restore the file from a copy, or dump the teacher again into a new folder",
            )
        return content
