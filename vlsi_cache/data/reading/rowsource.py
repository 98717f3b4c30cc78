"""Random access to the rows of a dataset on disk, without holding them in memory.

JSON Lines and JSON are read by byte offset. Arrow's JSON reader would need one type per field, but
conversations mix strings with lists of parts. The offsets cost 20 bytes per row (58 MB for 2.9
million). One row at a time is decoded, and an error can name its line.
"""

from __future__ import annotations

import json
import os
import weakref
from pathlib import Path
from typing import Any, Protocol

from vlsi_cache.data.reading.json_offsets import find_rows
from vlsi_cache.errors import DataError, excerpt

__all__ = ["ArrowRows", "JsonRows", "RowSource"]


class RowSource(Protocol):
    """Rows by number. It pickles, so that spawned loader workers can read."""

    @property
    def folder(self) -> Path:
        """Folder that relative image paths start from."""

    def __len__(self) -> int: ...

    def origin(self, index: int) -> str:
        """Name of a row in errors."""

    def row(self, index: int) -> object:
        """The decoded row.

        Raises:
            DataError: the row cannot be decoded.
        """


class JsonRows:
    """Rows of a JSON Lines file, or of a JSON file that holds one array.

    Raises:
        DataError: the file cannot be read, is empty, or is a JSON file without an array.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        try:
            self._offsets = find_rows(path)
        except OSError as error:
            raise DataError(
                "data file cannot be read", where=path, found=error.strerror or error
            ) from error
        if len(self._offsets.starts) == 0:
            raise DataError("data file is empty", where=path, mend="Give at least one conversation")

    @property
    def folder(self) -> Path:
        """The file's own folder."""
        return self.path.parent

    def __len__(self) -> int:
        return len(self._offsets.starts)

    def origin(self, index: int) -> str:
        """File name and 1-based line."""
        return f"{self.path.name}:{self._offsets.lines[index]}"

    def row(self, index: int) -> object:
        """The decoded row.

        Raises:
            DataError: the line is not JSON.
        """
        start = int(self._offsets.starts[index])
        text = self._read(start, int(self._offsets.ends[index]) - start)
        try:
            return json.loads(text)
        except ValueError as error:
            raise DataError(
                f"line is not JSON ({error})",
                where=self.origin(index),
                found=excerpt(text.decode(errors="replace")),
                mend="Write one JSON object per line",
            ) from error

    def _read(self, start: int, num_bytes: int) -> bytes:
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._descriptor)
        # pread, because threads and forked workers share the descriptor's own position.
        return os.pread(self._descriptor, num_bytes, start)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}  # spawned workers open their own


class ArrowRows:
    """Rows of a `datasets.Dataset`, memory-mapped by it. Images stay undecoded.

    Args:
        dataset: the table.
        name: first part of the rows' names.
        folder: folder that relative image paths start from.

    Raises:
        DataError: there are no rows.
    """

    def __init__(self, dataset: Any, name: str, folder: Path) -> None:
        if len(dataset) == 0:
            raise DataError("dataset is empty", where=name, mend="Give at least one conversation")
        # Arrow's own view of a row leaves datasets.Image as its bytes and path, at any depth.
        self._dataset = dataset.with_format("arrow")
        self._name = name
        self._folder = folder

    @property
    def folder(self) -> Path:
        """Folder that relative image paths start from."""
        return self._folder

    def __len__(self) -> int:
        return len(self._dataset)

    def origin(self, index: int) -> str:
        """Dataset and 0-based row."""
        return f"{self._name}[{index}]"

    def row(self, index: int) -> object:
        """The row as plain Python values."""
        return self._dataset[index : index + 1].to_pylist()[0]
