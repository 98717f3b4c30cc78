"""Errors of JSON files, with the line and the column in the file."""

from __future__ import annotations

import json
from typing import Final, Literal

from vlsi_cache.errors import DataError, counted, excerpt

__all__ = ["not_json"]

_NUL: Final = "\0"
_AGAIN: Final = "Copy or download it again: the file ends before its JSON does"
_BEFORE: Final = 20
"""Characters that are shown before the place of an error."""
_Kind = Literal["line", "last line", "file", "array"]
_WHAT: Final = {
    "line": "line is not JSON",
    "last line": "line is not JSON",
    "file": "file is not JSON",
    "array": "file is not a JSON array",
}
_MEND: Final = {
    "line": "Write one JSON object per line",
    "last line": "Write one JSON object per line",
    "file": "Mend the JSON there",
    "array": "Mend the JSON, or write one JSON object per line as .jsonl",
}


def not_json(
    kind: _Kind,
    name: str,
    text: str | bytes,
    error: Exception,
    start: tuple[int, int] = (1, 1),
) -> DataError:
    """The error of a text that is not JSON, or not UTF-8.

    Args:
        kind: what the text is. The last line is one that no line break ends.
        name: name of the file.
        text: the text.
        error: why it cannot be decoded.
        start: line and column of the text in the file, from 1.
    """
    place = _place(text, error)
    text = text if isinstance(text, str) else text.decode(errors="replace")
    is_line = kind in ("line", "last line")
    if place is not None and is_line:  # the end of a line is not the next one's beginning
        place = min(place, len(text.rstrip("\r\n")))
    line, column = start
    before = text[: place or 0]
    line += before.count("\n")
    column = len(before) - before.rfind("\n") if "\n" in before else column + len(before)
    at = "" if place is None else f" at line {line}, column {column}"
    return DataError(
        f"{_WHAT[kind]} ({_reason(error)}{at})",
        where=f"{name}:{line}",
        found=_shown(text, len(before), "line" if is_line else "file"),
        mend=_advice(text, before, error, is_end=kind != "line") or _MEND[kind],
    )


def _place(text: str | bytes, error: Exception) -> int | None:
    """The character at which the problem is, if the error says it."""
    if isinstance(error, json.JSONDecodeError):
        return error.pos
    if isinstance(error, UnicodeDecodeError) and isinstance(text, bytes):
        return len(text[: error.start].decode(errors="replace"))
    return None


def _shown(text: str, place: int, whole: str) -> str:
    """The text around a place."""
    if not text[place:].strip():
        return f"the end of the {whole}"
    rest = text[place:]
    if rest.startswith(_NUL):
        return counted(len(rest) - len(rest.lstrip(_NUL)), "NUL byte")
    return excerpt(text[max(0, place - _BEFORE) :].strip())


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg.removesuffix(" at")  # the place follows
    if isinstance(error, UnicodeDecodeError):
        return f"{error.encoding!r} codec: {error.reason}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if "integer string conversion" in str(error):
        return "a number has too many digits"
    return str(error)


def _advice(text: str, before: str, error: Exception, *, is_end: bool) -> str | None:
    """What mends a slip that is known by its look.

    Args:
        text: the text.
        before: what stands before the problem.
        error: the problem.
        is_end: whether the text ends with the file.
    """
    if isinstance(error, UnicodeDecodeError):
        return "Save the file as UTF-8"
    if not isinstance(error, json.JSONDecodeError):
        return "Mend the row, or drop it"
    rest = text[len(before) :].strip()
    if rest.startswith(_NUL):
        return "Copy the file again: a part of it was never written"
    if is_end and before.strip() and (not rest or error.msg.startswith("Unterminated")):
        return _AGAIN
    if rest == "," and before.rstrip().endswith(("}", "]")):
        return "Take the comma at the end of the line out: no commas stand between lines"
    if before.rstrip().endswith(",") and rest[:1] in ("}", "]"):
        return "Take the comma before the closing bracket out"
    if rest.startswith("'") and before.rstrip().endswith(("{", ",")):
        return "Write the rows with json.dumps. Python's own spelling has other quotes"
    if rest.startswith("{") and before.rstrip().endswith("}"):
        return "Begin a new line for each object"
    return None
