"""JSON without loss: a key that is given twice is refused."""

from __future__ import annotations

import json
from typing import Any

from vlsi_cache.errors import excerpt

__all__ = ["parse_row_json"]


def parse_row_json(text: str) -> object:
    """The value of a JSON text.

    Raises:
        ValueError: the text is not JSON, or gives a key twice with different values.
        RecursionError: the value is nested too deeply.
    """
    return _DECODER.decode(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        for name, value in pairs:
            if fields[name] != value:
                raise ValueError(f"the key {excerpt(name)!r} is given twice, with different values")
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
