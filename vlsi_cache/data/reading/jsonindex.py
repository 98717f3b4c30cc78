"""Where the rows of a JSON file begin and end, without keeping them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from vlsi_cache.errors import DataError

__all__ = ["Index", "index_rows"]

_SHOWN_CHARACTERS = 60

Index = tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]
"""First byte, one past the last byte, and 1-based line of each row."""


def index_rows(path: Path) -> Index:
    """Index of a JSON Lines file, or of a JSON file that holds one array; blank lines do not count.

    Raises:
        DataError: the file begins like an array and is none.
        OSError: the file cannot be read.
    """
    return _index_array(path) if _first_byte(path) == b"[" else _index_lines(path)


def _first_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        while byte := file.read(1):
            if not byte.isspace():
                return byte
    return b""


def _index_lines(path: Path) -> Index:
    starts, lines = _Numbers(np.uint64), _Numbers(np.uint32)
    ends = _Numbers(np.uint64)
    position = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.isspace():
                starts.append(position)
                ends.append(position + len(line))
                lines.append(number)
            position += len(line)
    return starts.array(), ends.array(), lines.array()


def _index_array(path: Path) -> Index:
    """Index of a JSON array's elements; decodes them one by one, and keeps none."""
    try:
        # Not read_text, which turns line ends into one character and so would move the offsets.
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"file is no UTF-8 ({error.reason} at byte {error.start})",
            where=path.name,
            mend="Save the file as UTF-8",
        ) from error
    starts, ends, lines = _Numbers(np.uint64), _Numbers(np.uint64), _Numbers(np.uint32)
    decode = json.JSONDecoder().raw_decode
    position, num_bytes, line = 0, 0, 1

    def advance(to: int) -> None:
        nonlocal position, num_bytes, line
        passed = text[position:to]
        num_bytes += len(passed.encode())
        line += passed.count("\n")
        position = to

    cursor = _skip_blanks(text, text.index("[") + 1)
    while not text.startswith("]", cursor):
        advance(cursor)
        start, start_line = num_bytes, line
        try:
            _, cursor = decode(text, cursor)
        except ValueError as error:
            raise _broken_array(path, line, text[cursor:]) from error
        advance(cursor)
        starts.append(start)
        ends.append(num_bytes)
        lines.append(start_line)
        cursor = _skip_blanks(text, cursor)
        if text.startswith(",", cursor):
            cursor = _skip_blanks(text, cursor + 1)
        elif not text.startswith("]", cursor):
            advance(cursor)
            raise _broken_array(path, line, text[cursor:])
    return starts.array(), ends.array(), lines.array()


def _skip_blanks(text: str, cursor: int) -> int:
    while cursor < len(text) and text[cursor] in " \t\r\n":
        cursor += 1
    return cursor


def _broken_array(path: Path, line: int, rest: str) -> DataError:
    return DataError(
        "file is no JSON array",
        where=f"{path.name}:{line}",
        found=rest[:_SHOWN_CHARACTERS] or "the end of the file",
        mend="Mend the JSON, or write one JSON object per line as .jsonl",
    )


class _Numbers:
    """A growing array of integers at their own width."""

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
