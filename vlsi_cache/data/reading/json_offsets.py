"""Byte offsets of the rows of a JSON file, without the rows themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlsi_cache.errors import DataError, excerpt

__all__ = ["RowOffsets", "find_rows"]


class RowOffsets(NamedTuple):
    """First and last byte of each row, and its line."""

    starts: np.ndarray[Any, Any]
    """First byte of each row."""
    ends: np.ndarray[Any, Any]
    """One past the last byte of each row."""
    lines: np.ndarray[Any, Any]
    """1-based line of each row's first byte."""


def find_rows(path: Path) -> RowOffsets:
    """Find the rows of a JSON Lines file, or of a JSON file that holds one array.

    Blank lines do not count.

    Raises:
        DataError: the file begins like an array, but is not one.
        OSError: the file cannot be read.
    """
    return _find_elements(path) if _first_byte(path) == b"[" else _find_lines(path)


def _first_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        while byte := file.read(1):
            if not byte.isspace():
                return byte
    return b""


def _find_lines(path: Path) -> RowOffsets:
    found = _Offsets()
    position = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.isspace():
                found.append(position, position + len(line), number)
            position += len(line)
    return found.arrays()


def _find_elements(path: Path) -> RowOffsets:
    """Find the elements of a JSON array. Decodes them one by one, and keeps none."""
    text = _read_text(path)
    found = _Offsets()
    position = _Position(text)
    decode = json.JSONDecoder().raw_decode
    cursor = _skip_blanks(text, text.index("[") + 1)
    while not text.startswith("]", cursor):
        position.advance(cursor)
        start = position.num_bytes
        line = position.line
        try:
            _, cursor = decode(text, cursor)
        except ValueError as error:
            raise _broken_array(path, line, text[cursor:]) from error
        position.advance(cursor)
        found.append(start, position.num_bytes, line)
        cursor = _skip_blanks(text, cursor)
        if text.startswith(",", cursor):
            cursor = _skip_blanks(text, cursor + 1)
        elif not text.startswith("]", cursor):
            position.advance(cursor)
            raise _broken_array(path, position.line, text[cursor:])
    return found.arrays()


def _read_text(path: Path) -> str:
    try:
        # read_text would turn line ends into one character, and so move the offsets.
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"file is not UTF-8 ({error.reason} at byte {error.start})",
            where=path.name,
            mend="Save the file as UTF-8",
        ) from error


def _skip_blanks(text: str, cursor: int) -> int:
    while cursor < len(text) and text[cursor] in " \t\r\n":
        cursor += 1
    return cursor


def _broken_array(path: Path, line: int, rest: str) -> DataError:
    return DataError(
        "file is not a JSON array",
        where=f"{path.name}:{line}",
        found=excerpt(rest) or "the end of the file",
        mend="Mend the JSON, or write one JSON object per line as .jsonl",
    )


class _Position:
    """The byte and the line of a character. It moves forward, and reads each character once."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._cursor = 0
        self.num_bytes = 0
        self.line = 1

    def advance(self, cursor: int) -> None:
        """Move to a later character."""
        passed = self._text[self._cursor : cursor]
        self.num_bytes += len(passed.encode())
        self.line += passed.count("\n")
        self._cursor = cursor


class _Offsets:
    """Offsets of the rows so far, at 20 bytes per row."""

    def __init__(self) -> None:
        self._starts = _Numbers(np.uint64)
        self._ends = _Numbers(np.uint64)
        self._lines = _Numbers(np.uint32)

    def append(self, start: int, end: int, line: int) -> None:
        self._starts.append(start)
        self._ends.append(end)
        self._lines.append(line)

    def arrays(self) -> RowOffsets:
        return RowOffsets(self._starts.array(), self._ends.array(), self._lines.array())


class _Numbers:
    """A growing array of integers at their own width, which a list would not keep to."""

    def __init__(self, dtype: type[np.unsignedinteger[Any]]) -> None:
        self._numbers = np.empty(1024, dtype)
        self._count = 0

    def append(self, number: int) -> None:
        if self._count == len(self._numbers):
            self._numbers = np.resize(self._numbers, 2 * self._count)
        self._numbers[self._count] = number
        self._count += 1

    def array(self) -> np.ndarray[Any, Any]:
        return self._numbers[: self._count].copy()
