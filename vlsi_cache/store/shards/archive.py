"""``Archive``: a shard's file, a zip whose entries are stored without compression, end to end."""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from vlsi_cache.store.places.place import Place

__all__ = ["METADATA", "Archive", "pack_archive"]

_TAIL_BYTES: Final = 2**16
"""Bytes of the first read, from the end. They hold directory and metadata of most shards."""
_DIRECTORY_BYTES: Final = 2**22
_ENTRY_HEADER: Final = 30
_ZIP64_EXTRA: Final = 20
_END: Final = struct.Struct("<4s4H2LH")
_NAME: Final = re.compile(r"zarr\.json|[a-z0-9_]+/(zarr\.json|c(/\d+){0,8})")
METADATA: Final = "zarr.json"
"""Name of the entries that describe others, or the end of it."""


def pack_archive(entries: Mapping[str, bytes]) -> bytes:
    """Return a zip of these entries. The same entries give the same bytes.

    Metadata goes last, next to the directory, so that one read from the end brings both.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name in sorted(entries, key=lambda name: (name.endswith(METADATA), name)):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # otherwise the bytes depend on the platform
            entry.external_attr = 0o644 << 16
            file.writestr(entry, entries[name])
    return buffer.getvalue()


@dataclass(frozen=True, slots=True)
class _Entry:
    start: int
    num_bytes: int
    crc32: int


class Archive:
    """A published zip, read in parts.

    Only the plainest zip is accepted. Its entries are not compressed. They lie end to end, without
    gaps or overlaps, from the first byte to the directory. No name appears twice, and all are names
    of a Zarr group. So the directory cannot lead outside the file, nor ask for more than it holds.

    Args:
        place: Place of the cache.
        key: Key of the zip.

    Raises:
        ValueError: the file is not such a zip.
        CacheError: the file cannot be read.
    """

    def __init__(self, place: Place, key: str) -> None:
        self._place, self._key = place, key
        self.num_bytes = place.size(key) or 0
        self._tail = self._read_tail(_TAIL_BYTES)
        directory = _directory_bytes(self._tail)
        if directory > _DIRECTORY_BYTES:
            raise ValueError(f"zip directory of {directory:,} bytes")
        if directory > len(self._tail):
            self._tail = self._read_tail(directory)
        self._entries = self._index()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all entries."""
        return tuple(self._entries)

    def size(self, name: str) -> int | None:
        """Return the bytes of an entry, or None if it does not exist."""
        entry = self._entries.get(name)
        return None if entry is None else entry.num_bytes

    def read(self, name: str) -> bytes:
        """Read a whole entry and verify its checksum.

        Raises:
            ValueError: its checksum is wrong.
        """
        entry = self._entries[name]
        content = self.read_range(name, 0, entry.num_bytes)
        if len(content) != entry.num_bytes or zlib.crc32(content) != entry.crc32:
            raise ValueError(f"zip entry {name} contradicts its checksum")
        return content

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Read part of an entry. Only checksums inside the entry cover it."""
        entry = self._entries[name]
        first = entry.start + min(max(start, 0), entry.num_bytes)
        last = entry.start + min(max(stop, start, 0), entry.num_bytes)
        tail_start = self.num_bytes - len(self._tail)
        if first >= tail_start:
            return self._tail[first - tail_start : last - tail_start]
        return self._place.read_range(self._key, first, last)

    def _read_tail(self, count: int) -> bytes:
        start = max(self.num_bytes - count, 0)
        tail = self._place.read_range(self._key, start, self.num_bytes)
        if len(tail) != self.num_bytes - start:
            raise ValueError("file became shorter while it was read")
        return tail

    def _index(self) -> dict[str, _Entry]:
        with zipfile.ZipFile(_End(self._tail, self.num_bytes)) as file:
            infos, stop = file.infolist(), file.start_dir
            if file.comment:
                raise ValueError("zip has a comment")
        entries: dict[str, _Entry] = {}
        _, *disks, here, total, _, _, _ = _END.unpack(self._tail[-_END.size :])
        if any(disks) or here != total or total != min(len(infos), 0xFFFF):
            raise ValueError("zip directory contradicts its own end")
        starts = [*(info.header_offset for info in infos), stop]
        if starts[0] != 0:
            raise ValueError("zip has bytes before its first entry")
        for info, start, end in zip(infos, starts, starts[1:], strict=False):
            name, size = info.orig_filename, info.file_size
            if not _NAME.fullmatch(name) or name in entries:
                raise ValueError(f"zip entry {name[:80]!r} is not allowed, or appears twice")
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != size:
                raise ValueError(f"zip entry {name} is compressed")
            gap = end - start - _ENTRY_HEADER - len(name.encode()) - size
            if gap not in (0, _ZIP64_EXTRA) or info.flag_bits:
                raise ValueError(f"zip entry {name} does not end where the next begins")
            entries[name] = _Entry(end - size, size, info.CRC)
        return entries


class _End(io.BytesIO):
    """The end of a file, with the positions of the whole file. ``zipfile`` reads nothing else."""

    def __init__(self, tail: bytes, num_bytes: int) -> None:
        super().__init__(tail)
        self._before = num_bytes - len(tail)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_SET:
            if offset < self._before:
                raise ValueError("zip directory contradicts its own size")
            offset -= self._before
        return super().seek(offset, whence) + self._before

    def tell(self) -> int:
        return super().tell() + self._before


def _directory_bytes(tail: bytes) -> int:
    """Return the size of the directory with its end record, as the last 22 bytes state it."""
    if len(tail) < _END.size:
        raise ValueError("file is too short for a zip")
    signature, *_, directory, _, comment = _END.unpack(tail[-_END.size :])
    if signature != b"PK\5\6" or comment:
        raise ValueError("file does not end as a zip does: it is cut short, or not a zip")
    # the larger records that zip64 adds, and their own sizes, fit the tail
    return int(directory) + 256 if directory < 0xFFFFFFFF else 0
