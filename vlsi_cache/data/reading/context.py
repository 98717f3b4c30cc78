"""``RowContext``: where a row lies, and what its readers share."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from vlsi_cache.data.images import MAX_PIXELS
from vlsi_cache.data.reading.files.strictjson import parse_row_json
from vlsi_cache.errors import DataError, excerpt

_CONTAINERS: Final = (str, bytes, list, dict)

__all__ = ["Notes", "ReadSettings", "RowContext", "is_given"]


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """What a recipe says of all rows."""

    template_variables: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the chat template. Those of a row go before them."""
    max_pixels: int = MAX_PIXELS
    """Most pixels that an image may decode to."""


@dataclass(frozen=True, slots=True)
class Notes:
    """What the log says of a dataset, once all rows are read."""

    unread: set[str] = field(default_factory=set)
    """Names of fields that hold something, and that nothing reads."""
    filled: set[str] = field(default_factory=set)
    """Names of fields whose objects hold null, which a table may have filled in."""


@dataclass(frozen=True, slots=True)
class RowContext:
    """One row's context, for all that reads a part of it."""

    folder: Path
    """Folder that relative image paths start from."""
    origin: str
    """Name of the row in errors."""
    settings: ReadSettings = ReadSettings()
    """What the recipe says of all rows."""
    notes: Notes = field(default_factory=Notes)
    """What the log says of the dataset. All its rows share it."""

    def error(self, what: str, **details: Any) -> DataError:
        """The error that names the row."""
        return DataError(what, where=self.origin, **details)

    def note_unread(self, fields: Mapping[str, Any], known: Set[str], path: str = "") -> None:
        """Remember the fields that hold something, and that nothing reads."""
        for name in fields.keys() - known:
            if is_given(fields[name]):
                self.notes.unread.add(f"{path}{name}")

    def note_filled(self, value: object, name: str) -> None:
        """Remember a field whose value holds null at any depth."""
        if _holds_null(value):
            self.notes.filled.add(name)

    def decoded(self, value: object, name: str) -> object:
        """The value of a field. If it is text, the text is JSON.

        Raises:
            DataError: the text is not JSON.
        """
        if not isinstance(value, str):
            return value
        try:
            return parse_row_json(value)
        except (ValueError, RecursionError) as error:
            is_deep = isinstance(error, RecursionError)
            why = "it is nested too deeply" if is_deep else str(error)
            raise self.error(f"{name} is not JSON ({why})", found=excerpt(value)) from error


def is_given(value: object) -> bool:
    """Whether a field holds something.

    `datasets` gives every row the fields of all others, and fills them with null.
    """
    return bool(value) or (value is not None and not isinstance(value, _CONTAINERS))


def _holds_null(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_null, value.values()))
    return any(map(_holds_null, value)) if isinstance(value, list) else value is None
