"""Where a cache lies: files that are published whole, once, and read in parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vlsi_cache.errors import CacheError

__all__ = ["Place", "open_place", "url_scheme"]

_SCHEMES: Final = ("s3", "s3a", "gs", "az", "abfs", "abfss", "adl", "azure")


class Place(ABC):
    """A folder of files by key, such as ``shards/00000.json``.

    All that the format needs of storage is here: a file appears in one step with all its bytes,
    unless one is there already; nothing is changed. Names that begin with a dot belong to writers
    at work and are never listed.
    """

    @abstractmethod
    def locate(self, key: str = "") -> str:
        """The address of a file, or of the place itself, for people."""

    @abstractmethod
    def prove_usable(self) -> None:
        """Refuse a place in which no cache can be begun.

        Raises:
            CacheError: something else is in its way, or it cannot be reached.
        """

    @abstractmethod
    def list_files(self, folder: str = "") -> dict[str, int]:
        """Key → bytes of every file below a folder, in the order of keys."""

    @abstractmethod
    def size(self, key: str) -> int | None:
        """Bytes of a file, or None where there is none."""

    @abstractmethod
    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Bytes of a file from ``start`` up to ``stop`` or its end.

        Raises:
            CacheError: there is no such file, or it cannot be read.
        """

    @abstractmethod
    def publish(self, key: str, content: bytes) -> bool:
        """Let a file appear, whole and durable, unless there is one.

        Returns:
            Whether this call published it; if not, the file that was there stays.

        Raises:
            CacheError: there is no room, or no permission.
        """

    def adopt(self, key: str, source: Place, source_key: str) -> bool:
        """Let a file of another place appear here too, without copying its bytes, unless there is
        one.

        Returns:
            Whether the file is here now; if not, the two places share no storage, and its bytes
            must be copied.

        Raises:
            CacheError: there is no such file, or no permission.
        """
        return False

    @abstractmethod
    def clear_leftovers(self, folders: Sequence[str]) -> None:
        """Delete what killed writers left unpublished; those at work are left alone.

        Only in a place that is proven to be a cache.

        Args:
            folders: those of a cache; besides them, only the place itself is looked into.
        """

    def read(self, key: str, *, limit: int) -> bytes:
        """A whole file.

        Raises:
            CacheError: there is no such file, or it is longer than ``limit``.
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


def open_place(address: str | Path) -> Place:
    """The place at a path, or at the URL of an object store.

    Raises:
        CacheError: nothing of the URL's kind is known.
    """
    scheme = url_scheme(address)
    if scheme is None:
        from vlsi_cache.store.places.local import LocalPlace

        return LocalPlace(Path(address))
    if scheme not in _SCHEMES:
        raise CacheError(
            "no cache can be kept there",
            where=address,
            expected=f"a path, or a URL with {', '.join(_SCHEMES)}",
            found=scheme,
        )
    from vlsi_cache.store.places.objects import ObjectPlace

    return ObjectPlace(str(address))


def url_scheme(address: str | Path) -> str | None:
    """What stands before ``://``, or None for a path."""
    scheme, found, _ = str(address).partition("://")
    return scheme if found else None
