"""A JSON object that is no row itself, and holds the list of the rows under one of its keys."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from vlsi_cache.data.reading.context import RowContext, is_given
from vlsi_cache.data.reading.files.strictjson import parse_row_json
from vlsi_cache.data.reading.forms.forms import FORM_COLUMNS, NO_FORM, find_form
from vlsi_cache.data.reading.forms.sides import TURN_COLUMNS
from vlsi_cache.errors import DataError
from vlsi_cache.phases import speaks_for_all

__all__ = ["find_wrapped"]

logger = logging.getLogger(__name__)

_DECODE = json.JSONDecoder().raw_decode
_INNER: Final = ("role", "from", "type")
"""Keys of turns and of parts, which are no rows."""
_BLANKS: Final = " \t\r\n"


def find_wrapped(text: str, start: int, name: str) -> int | None:
    """Find the list of the rows in a file's only object. None if the object is a row itself.

    Args:
        text: the text of the file.
        start: first character of the object.
        name: name of the file.

    Returns:
        The character at which the list begins.

    Raises:
        DataError: several keys may hold the rows.
    """
    try:
        value = parse_row_json(text[start:])
    except (ValueError, RecursionError):
        return None  # as a row, it is refused when it is read
    if not isinstance(value, Mapping) or _is_row(value, sound=False):
        return None
    keys = _keys_of_rows(value)
    if len(keys) > 1:
        raise DataError(
            "a file with one object holds several lists, and none of them is known as the rows",
            where=name,
            found="lists in " + ", ".join(keys),
            mend=f"Write one into a file of its own: jq -c '.{keys[0]}[]' {name} > rows.jsonl",
        )
    if not keys:
        _validate_no_table(value, name)
        return None
    _say(name, keys[0], [key for key in value if key != keys[0] and is_given(value[key])])
    return _begin_of(text, start, keys[0])


def _say(name: str, key: str, others: list[str]) -> None:
    if others and speaks_for_all():
        logger.warning(
            "%s: the rows are read from its key %s; not read: %s", name, key, ", ".join(others)
        )
    else:
        logger.info("%s: the rows are read from its key %s", name, key)


def _keys_of_rows(value: Mapping[str, Any]) -> list[str]:
    """Keys with a list of rows. Or, if there is none, with a list of any objects."""
    if any(is_given(value.get(key)) for key in _INNER):
        return []
    lists = [
        key
        for key, items in value.items()
        if isinstance(items, list)
        and items
        and isinstance(items[0], Mapping)
        and items[0].keys().isdisjoint(_INNER)
    ]
    rows = [key for key in lists if _is_row(value[key][0])]
    # Under a name of turns there may be turns with other keys, such as speaker and text.
    rows = [key for key in rows if key not in TURN_COLUMNS or "text" not in value[key][0]]
    return rows or [key for key in lists if key not in FORM_COLUMNS]


def _is_row(value: Mapping[str, Any], *, sound: bool = True) -> bool:
    """Whether an object has one of the forms of rows, with turns that are turns.

    Args:
        value: the object.
        sound: whether a form that is not sound is none.
    """
    try:
        form = find_form(value, RowContext(Path(), ""))
    except DataError as error:
        return not sound and error.what != NO_FORM
    return any(not turn.fields.keys().isdisjoint(_INNER) for turn in form.turns)


def _validate_no_table(value: Mapping[str, Any], name: str) -> None:
    """Refuse an object whose values are the rows."""
    rows = [item for item in value.values() if isinstance(item, Mapping) and _is_row(item)]
    if 1 < len(rows) == len(value):
        raise DataError(
            "a file with one object holds a row under each key",
            where=name,
            found=f"{len(value):,} keys",
            mend=f"Write the rows alone: jq -c '.[]' {name} > rows.jsonl",
        )


def _begin_of(text: str, start: int, key: str) -> int:
    """Find where a key's value begins in the text of a sound object."""
    cursor = start + 1
    while True:
        found, cursor = _DECODE(text, _after_blanks(text, cursor))
        cursor = _after_blanks(text, _after_blanks(text, cursor) + 1)  # the colon
        if found == key:
            return cursor
        _, cursor = _DECODE(text, cursor)
        cursor = _after_blanks(text, cursor) + 1  # the comma


def _after_blanks(text: str, cursor: int) -> int:
    while text[cursor] in _BLANKS:
        cursor += 1
    return cursor
