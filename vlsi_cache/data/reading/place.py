"""``Place``: where a row lies, and what its readers share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlsi_cache.data.images import MAX_PIXELS
from vlsi_cache.errors import DataError, excerpt

__all__ = ["Place", "ReadSettings", "is_given"]


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """What a recipe says of all rows."""

    template_variables: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the chat template. Those of a row go before them."""
    max_pixels: int = MAX_PIXELS
    """Most pixels that an image may decode to."""


@dataclass(frozen=True, slots=True)
class Place:
    """One row's place, for all that reads a part of it."""

    folder: Path
    """Folder that relative image paths start from."""
    origin: str
    """Name of the row in errors."""
    settings: ReadSettings = ReadSettings()
    """What the recipe says of all rows."""
    unread: set[str] = field(default_factory=set)
    """Names of fields that nothing reads. All rows of a dataset share it."""

    def error(self, what: str, **details: Any) -> DataError:
        """The error that names the row."""
        return DataError(what, where=self.origin, **details)

    def note_unread(self, fields: Mapping[str, Any], known: Iterable[str], path: str = "") -> None:
        """Remember the fields that hold something, and that nothing reads."""
        for name in fields.keys() - set(known):
            if is_given(fields[name]):
                self.unread.add(f"{path}{name}")

    def decoded(self, value: object, name: str) -> object:
        """The value of a field. If it is text, the text is JSON.

        Raises:
            DataError: the text is not JSON.
        """
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise self.error(f"{name} is not JSON ({error})", found=excerpt(value)) from error


def is_given(value: object) -> bool:
    """Whether a field holds something.

    `datasets` gives every row the fields of all others, and fills them with null.
    """
    return value is not None and not (isinstance(value, str | bytes | list | Mapping) and not value)
