"""``ArchiveStore``: a shard's zip as a read-only Zarr store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype

from vlsi_cache.jsonmodels import parse_json
from vlsi_cache.store.shards.archive import METADATA, Archive
from vlsi_cache.store.shards.bounds import validate_metadata

__all__ = ["ArchiveStore"]


class ArchiveStore(Store):
    """The entries of an ``Archive``, whole or by range, each within its bounds."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, archive: Archive) -> None:
        super().__init__(read_only=True)
        self._archive = archive

    def __eq__(self, value: object) -> bool:
        return isinstance(value, ArchiveStore) and value._archive is self._archive

    def read_metadata(self) -> bytes:
        """Return the root group's metadata."""
        size = self._archive.size("zarr.json")
        if size is None:
            raise ValueError("zarr.json is missing")
        return self._read("zarr.json", size, None)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return an entry, or part of it."""
        size = self._archive.size(key)
        if size is None:
            return None
        return prototype.buffer.from_bytes(self._read(key, size, byte_range))

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """Return several entries or parts."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        """Report whether the entry exists."""
        return self._archive.size(key) is not None

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse."""
        raise NotImplementedError("nothing published is ever changed")

    async def delete(self, key: str) -> None:
        """Refuse."""
        raise NotImplementedError("nothing published is ever changed")

    async def list(self) -> AsyncIterator[str]:
        """Yield all names."""
        for name in self._archive.names:
            yield name

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names that begin with a prefix."""
        for name in self._archive.names:
            if name.startswith(prefix):
                yield name

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names directly below a folder."""
        folder = prefix.rstrip("/") + "/" if prefix else ""
        below = (name for name in self._archive.names if name.startswith(folder))
        for name in dict.fromkeys(name[len(folder) :].split("/")[0] for name in below):
            yield name

    def _read(self, key: str, size: int, byte_range: ByteRequest | None) -> bytes:
        if key.endswith(METADATA):
            validate_metadata(key, size)
            parse_json(self._archive.read(key))  # Zarr would take the last of two equal keys
        match byte_range:
            case None:
                return self._archive.read(key)
            case RangeByteRequest(start=start, end=end):
                return self._archive.read_range(key, start, end)
            case OffsetByteRequest(offset=offset):
                return self._archive.read_range(key, offset, size)
            case SuffixByteRequest(suffix=suffix):
                return self._archive.read_range(key, size - suffix, size)
