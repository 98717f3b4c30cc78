"""Columns of images that hold a list as a text of JSON, as tables of plain text store them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vlsi_cache.data.reading.files.strictjson import parse_row_json

__all__ = ["with_lists"]


def with_lists(row: Mapping[str, Any], columns: Iterable[str]) -> Mapping[str, Any]:
    """Return a row with lists in place of the texts of JSON that hold them.

    Args:
        row: the row.
        columns: names of the columns that may hold a list.
    """
    decoded = {name: _decoded(row[name]) for name in columns if _is_list_text(row.get(name))}
    return {**row, **decoded} if decoded else row


def _is_list_text(value: object) -> bool:
    return isinstance(value, str) and value.lstrip()[:1] == "[" and value.rstrip()[-1:] == "]"


def _decoded(text: str) -> object:
    """The list. A text that holds no JSON may be the name of a file."""
    try:
        found = parse_row_json(text)
    except (ValueError, RecursionError):
        return text
    return found if isinstance(found, list) else text
