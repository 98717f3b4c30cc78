"""Random access to the rows of a dataset on disk, without holding them in memory.

JSON Lines and JSON are read by byte offset. Arrow's JSON reader would need one type per field, but
conversations mix strings with lists of parts. The offsets cost 20 bytes per row (58 MB for 2.9
million). One row at a time is decoded, and an error can name its line.
"""

from __future__ import annotations

import codecs
import errno
import os
import weakref
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from vlsi_cache.data.reading.files.beginnings import validate_json_file
from vlsi_cache.data.reading.files.compression import is_compressed, unpack
from vlsi_cache.data.reading.files.json_offsets import find_rows
from vlsi_cache.data.reading.files.jsonproblems import not_json
from vlsi_cache.data.reading.files.strictjson import parse_row_json
from vlsi_cache.data.reading.stamps import (
    Stamps,
    are_settled,
    settled_stamps,
    stamp_of_open,
    stamps_of,
)
from vlsi_cache.errors import DataError, first_line

__all__ = ["JsonRows", "RowSource"]


_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MOST_BEFORE: Final = 1 << 16
"""Bytes before a row in which the beginning of its line is sought, for an error's column."""


class RowSource(Protocol):
    """Rows by number. It pickles, so that spawned loader workers can read."""

    def __len__(self) -> int: ...

    def files(self) -> dict[str, Stamps]:
        """Files that hold the rows, with their stamps from before they were read.

        Empty if the rows lie elsewhere.
        """

    def is_current(self) -> bool:
        """Whether what is known of the files since they were opened still holds.

        A file that changes twice within a moment has the same stamp.
        """

    def columns_not_met(self) -> set[str]:
        """Names in data.columns that no row had, of those that were read."""

    def folder(self, index: int) -> Path:
        """Folder that a row's relative image paths start from."""

    def origin(self, index: int) -> str:
        """Name of a row in errors."""

    def row(self, index: int) -> object:
        """The decoded row.

        Raises:
            DataError: the row cannot be decoded.
        """


class JsonRows:
    """Rows of a JSON Lines file, or of a JSON file that holds arrays.

    A compressed file is unpacked into the system's folder of temporary files first.

    Args:
        path: the file.
        name: its name in errors. By default the file's own.

    Raises:
        DataError: the file cannot be read, is empty, or is a JSON file without an array.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self._name = name or path.name
        self._folder = path.parent
        self._descriptor: int | None = None
        given = str(path.absolute())
        # An unpacked copy cannot be compared with its file later.
        stamps = settled_stamps if is_compressed(path) else stamps_of
        self._files = {given: stamps([given])}
        self._was_settled = are_settled(self._files[given])
        try:
            self._path = path
            if is_compressed(path):
                self._path = unpack(path)
                weakref.finalize(self, _remove, self._path, os.getpid())
            validate_json_file(self._path, path)
            self._offsets = find_rows(self._path, self._name)
        except OSError as error:
            is_full = error.errno in _NO_ROOM
            raise DataError(
                "data file cannot be unpacked" if is_full else "data file cannot be read",
                where=path,
                found=error.strerror or first_line(error),
                mend="Set TMPDIR to a folder with room, or unpack the file" if is_full else None,
            ) from error
        if len(self._offsets.starts) == 0:
            raise DataError("data file is empty", where=path, mend="Give at least one conversation")

    def __len__(self) -> int:
        return len(self._offsets.starts)

    def files(self) -> dict[str, Stamps]:
        """The file."""
        return self._files

    def is_current(self) -> bool:
        """Whether the rows are where they were found."""
        if self._was_settled or str(self._path.absolute()) not in self._files:
            return self._was_settled  # an unpacked file does not change
        found = find_rows(self._path, self._name)
        return all(map(np.array_equal, found, self._offsets))

    def columns_not_met(self) -> set[str]:
        """None, because no column is renamed here."""
        return set()

    def folder(self, index: int) -> Path:
        """The file's own folder."""
        return self._folder

    def origin(self, index: int) -> str:
        """File name and 1-based line."""
        return f"{self._name}:{self._offsets.lines[index]}"

    def row(self, index: int) -> object:
        """The decoded row.

        Raises:
            DataError: the line is not JSON.
        """
        start = int(self._offsets.starts[index])
        text = self._read(start, int(self._offsets.ends[index]) - start)
        try:
            return parse_row_json(text.decode())
        except (ValueError, RecursionError) as error:
            place = int(self._offsets.lines[index]), self._column(start)
            is_last = index == len(self) - 1 and not text.endswith(b"\n")
            raise not_json(
                "last line" if is_last else "line", self._name, text, error, place
            ) from error

    def _column(self, start: int) -> int:
        """The column of a row's first byte. The line before it is short: a bracket, or a mark."""
        before = self._read(max(0, start - _MOST_BEFORE), min(start, _MOST_BEFORE))
        line = before.rpartition(b"\n")[2].removeprefix(codecs.BOM_UTF8)
        return 1 + len(line.decode(errors="replace"))

    def _read(self, start: int, num_bytes: int) -> bytes:
        if self._descriptor is None:
            self._descriptor = self._open()
            weakref.finalize(self, os.close, self._descriptor)
        # pread, because threads and forked workers share the descriptor's own position.
        return os.pread(self._descriptor, num_bytes, start)

    def _open(self) -> int:
        """Open the file, which has to be the one whose rows were found."""
        descriptor = os.open(self._path, os.O_RDONLY)
        known = self._files.get(str(self._path.absolute()))  # none of an unpacked file
        if known is not None and stamp_of_open(descriptor) != tuple(known[0]):
            os.close(descriptor)
            raise DataError(
                "data file has changed since it was opened",
                where=self._path,
                mend="Run the command again, once nothing writes to it",
            )
        return descriptor

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}  # spawned workers open their own


def _remove(path: Path, process: int) -> None:
    # A forked worker has a copy of the object, and the file is not its own.
    if os.getpid() == process:
        path.unlink(missing_ok=True)
