"""Byte offsets of the rows of a JSON file, without the rows themselves."""

from __future__ import annotations

import codecs
import json
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlsi_cache.data.reading.files.jsonproblems import not_json
from vlsi_cache.data.reading.files.wrapping import find_wrapped
from vlsi_cache.errors import DataError, excerpt

__all__ = ["RowOffsets", "find_rows"]

_BLANKS = " \t\r\n"
_DECODE = json.JSONDecoder().raw_decode
_MARK = "\ufeff"
"""What a byte-order mark decodes to."""


class RowOffsets(NamedTuple):
    """First and last byte of each row, and its line."""

    starts: np.ndarray[Any, Any]
    """First byte of each row."""
    ends: np.ndarray[Any, Any]
    """One past the last byte of each row."""
    lines: np.ndarray[Any, Any]
    """1-based line of each row's first byte."""


def find_rows(path: Path, name: str) -> RowOffsets:
    """Find the rows of a JSON Lines file, or of a JSON file that holds arrays, one after another.

    Objects may also go over many lines, one after another. One object that is no row, but holds the
    list of the rows under a key, is read by that key. Blank lines do not count.

    Args:
        path: the file.
        name: its name in errors.

    Raises:
        DataError: the file is not UTF-8, or begins like an array and holds something else.
        OSError: the file cannot be read.
    """
    first = _first_byte(path)
    if first == b"[":
        return _find_elements(path, name)
    if first == b"{" and not _is_by_line(path):
        return _find_objects(path, name)
    return _find_lines(path)


def _first_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        while byte := file.read(1):
            if not byte.isspace():
                return byte
    return b""


def _is_by_line(path: Path) -> bool:
    """Whether a file that begins with an object has one on each line, as far as two lines show.

    A first line that is cut or damaged is no reason to read the whole file in another way.
    """
    with path.open("rb") as file:
        lines = (line.removeprefix(codecs.BOM_UTF8).strip() for line in file)
        first, second = [*islice(filter(None, lines), 2), b""][:2]
    if _is_json(first):
        return bool(second)
    return first.endswith(b"}") or _is_json(first.removesuffix(b",")) or _is_json(second)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _find_objects(path: Path, name: str) -> RowOffsets:
    """Find objects that go over many lines, or the rows that a single object holds."""
    text = _read_text(path, name)
    found = _Offsets()
    position = _Position(text)
    cursor = _skip_blanks(text, 0, _BLANKS + _MARK)
    starts = []
    while cursor < len(text):
        position.advance(cursor)
        starts.append(cursor)
        start, line = position.num_bytes, position.line
        try:
            _, cursor = _DECODE(text, cursor)
        except (ValueError, RecursionError) as error:
            raise not_json("file", name, text, error) from error
        position.advance(cursor)
        found.append(start, position.num_bytes, line)
        cursor = _skip_blanks(text, cursor, _BLANKS + _MARK)
    if len(starts) == 1:
        wrapped = find_wrapped(text, starts[0], name)
        if wrapped is not None:
            found = _Offsets()
            _read_array(text, wrapped, _Position(text), found, name)
    return found.arrays()


def _find_lines(path: Path) -> RowOffsets:
    found = _Offsets()
    position = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            # Files that were joined have marks in the middle, too.
            text = line.removeprefix(codecs.BOM_UTF8)
            if text and not text.isspace():
                found.append(position + len(line) - len(text), position + len(line), number)
            position += len(line)
    return found.arrays()


def _find_elements(path: Path, name: str) -> RowOffsets:
    """Find the elements of JSON arrays. Decodes them one by one, and keeps none."""
    text = _read_text(path, name)
    found = _Offsets()
    position = _Position(text)
    cursor = text.index("[")
    while cursor < len(text):
        if text[cursor] != "[":
            position.advance(cursor)
            raise DataError(
                "text follows the array",
                where=f"{name}:{position.line}",
                expected="the end of the file, or another array",
                found=f"{excerpt(text[cursor:])!r} at byte {position.num_bytes}",
                mend="Mend the JSON, or write one JSON object per line as .jsonl",
            )
        cursor = _read_array(text, cursor, position, found, name)
        cursor = _skip_blanks(text, cursor, _BLANKS + _MARK)
    return found.arrays()


def _read_array(text: str, cursor: int, position: _Position, found: _Offsets, name: str) -> int:
    """Find the elements of the array at ``cursor``. Returns the first character after it."""
    cursor = _skip_blanks(text, cursor + 1)
    while not text.startswith("]", cursor):
        position.advance(cursor)
        start = position.num_bytes
        line = position.line
        try:
            _, cursor = _DECODE(text, cursor)
        except (ValueError, RecursionError) as error:
            raise not_json("array", name, text, error) from error
        position.advance(cursor)
        found.append(start, position.num_bytes, line)
        cursor = _skip_blanks(text, cursor)
        if text.startswith(",", cursor):
            cursor = _skip_blanks(text, cursor + 1)
        elif not text.startswith("]", cursor):
            missing = json.JSONDecodeError("Expecting ',' delimiter", text, cursor)
            raise not_json("array", name, text, missing)
    return cursor + 1


def _read_text(path: Path, name: str) -> str:
    try:
        # read_text would turn line ends into one character, and so move the offsets.
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"file is not UTF-8 ({error.reason} at byte {error.start})",
            where=name,
            mend="Save the file as UTF-8",
        ) from error


def _skip_blanks(text: str, cursor: int, blanks: str = _BLANKS) -> int:
    while cursor < len(text) and text[cursor] in blanks:
        cursor += 1
    return cursor


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
