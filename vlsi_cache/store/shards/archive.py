"""One shard's file: a zip whose entries are stored as they are, end to end."""

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
"""Read first, from the end: directory and metadata, unless a shard has very many entries."""
_DIRECTORY_BYTES: Final = 2**22
_ENTRY_HEADER: Final = 30
_ZIP64_EXTRA: Final = 20
_END: Final = struct.Struct("<4s4H2LH")
_NAME: Final = re.compile(r"zarr\.json|[a-z0-9_]+/(zarr\.json|c(/\d+){0,8})")
METADATA: Final = "zarr.json"
"""Name, or end of the name, of every entry that describes others."""


def pack_archive(entries: Mapping[str, bytes]) -> bytes:
    """A zip of these entries; the same entries give the same bytes.

    Metadata goes last, next to the directory: one read from the end of the file brings both.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name in sorted(entries, key=lambda name: (name.endswith(METADATA), name)):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # or it would tell the platform
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

    Only the plainest zip is one: entries stored, not deflated, end to end without gaps or overlaps
    from the first byte to the directory, no name twice, no name but those of a Zarr group. What
    its directory says can then not lead outside the file, nor ask for more than the file holds.

    Args:
        place: the cache's place.
        key: the zip.

    Raises:
        ValueError: the file is anything else.
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
        """Bytes of an entry, or None if there is none of this name."""
        entry = self._entries.get(name)
        return None if entry is None else entry.num_bytes

    def read(self, name: str) -> bytes:
        """A whole entry, its checksum verified.

        Raises:
            ValueError: its checksum is wrong.
        """
        entry = self._entries[name]
        content = self.read_range(name, 0, entry.num_bytes)
        if len(content) != entry.num_bytes or zlib.crc32(content) != entry.crc32:
            raise ValueError(f"zip entry {name} contradicts its checksum")
        return content

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Part of an entry; no checksum covers it but those inside the entry."""
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
                raise ValueError(f"zip entry {name[:80]!r} is out of place or there twice")
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != size:
                raise ValueError(f"zip entry {name} is not stored as it is")
            gap = end - start - _ENTRY_HEADER - len(name.encode()) - size
            if gap not in (0, _ZIP64_EXTRA) or info.flag_bits:
                raise ValueError(f"zip entry {name} does not end where the next begins")
            entries[name] = _Entry(end - size, size, info.CRC)
        return entries


class _End(io.BytesIO):
    """The end of a file in the file's own positions, for ``zipfile``, which reads no further."""

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
    """Size of the directory with its end record, as the last 22 bytes tell it."""
    if len(tail) < _END.size:
        raise ValueError("file is too short for a zip")
    signature, *_, directory, _, comment = _END.unpack(tail[-_END.size :])
    if signature != b"PK\5\6" or comment:
        raise ValueError("file does not end as a zip does: it is cut short, or no zip")
    # the larger records that zip64 adds, and their own sizes, fit the tail
    return int(directory) + 256 if directory < 0xFFFFFFFF else 0
