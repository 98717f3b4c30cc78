"""A tree of settings as rows of text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from vlsi_cache.errors import printable

__all__ = ["differing_text", "flat_settings", "setting_text"]

_HASH: Final = 64
_SHOWN_OF_HASH: Final = 12
_SHOWN: Final = 200
"""Most characters of a value that are shown."""
_CONTEXT: Final = 20
"""Characters that are shown before a difference, where it lies beyond what is shown."""


def flat_settings(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return path and value of every leaf, printable."""
    return list(_leaves(settings, ""))


def setting_text(value: Any) -> str:
    """Return a value in one line. A hash is cut to what distinguishes two."""
    if isinstance(value, str):
        if len(value) == _HASH and not set(value) - set("0123456789abcdef"):
            return f"{value[:_SHOWN_OF_HASH]}…"
        return printable(value, _SHOWN)
    return printable(json.dumps(value, ensure_ascii=False), _SHOWN)


def differing_text(value: Any, other: Any) -> str:
    """Return a value in one line, from near the place where it differs from another."""
    text, beside = (_whole_text(item) for item in (value, other))
    pairs = enumerate(zip(text, beside, strict=False))
    common = next((place for place, (one, two) in pairs if one != two), min(len(text), len(beside)))
    if common < _SHOWN - _CONTEXT or text == beside:
        return setting_text(value)
    return "… " + printable(text[common - _CONTEXT :], _SHOWN)


def _whole_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _leaves(settings: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield printable(f"{prefix}{name}"), setting_text(value)
