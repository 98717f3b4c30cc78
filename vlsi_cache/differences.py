"""Differences between two trees of JSON values, as values and as clauses."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["ABSENT", "Absent", "Difference", "find_differences"]

_SHOWN_CHARACTERS: Final = 200
"""Most characters of a value that a clause shows."""
_SHOWN_HASH_CHARACTERS: Final = 12
"""Enough of a hash to distinguish two."""


class Absent(enum.Enum):
    """The value of a path that a tree lacks; null is a value of its own."""

    ABSENT = "absent"


ABSENT: Final = Absent.ABSENT


@dataclass(frozen=True, slots=True)
class Difference:
    """One path with two values."""

    path: str
    """Keys from the root, joined by dots."""
    recorded: Any
    """JSON value of the first tree, or ``ABSENT``."""
    wanted: Any
    """JSON value of the second tree, or ``ABSENT``."""

    def clause(self, other: str = "asked for") -> str:
        """Render the difference, such as ``sampling.k is 4, asked for 8``.

        Args:
            other: name of the second tree.
        """
        return f"{self.path} is {_shown(self.recorded)}, {other} {_shown(self.wanted)}"


def find_differences(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[Difference]:
    """Find every path at which two trees of JSON values differ.

    Args:
        recorded: what something was made with.
        wanted: what it is wanted with.

    Returns:
        The differences in the order of their paths.
    """
    left = dict(_leaves(recorded))
    right = dict(_leaves(wanted))
    found = [
        Difference(path, left.get(path, ABSENT), right.get(path, ABSENT))
        for path in sorted(left.keys() | right.keys())
    ]
    # compared as JSON, in which True is not 1 and NaN is NaN
    return [item for item in found if _as_json(item.recorded) != _as_json(item.wanted)]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{path}.")
        else:
            yield path, value


def _as_json(value: Any) -> str | None:
    return None if value is ABSENT else json.dumps(value, sort_keys=True)


def _shown(value: Any) -> str:
    if value is ABSENT:
        return "absent"
    if _is_hash(value):
        return f"{value[:_SHOWN_HASH_CHARACTERS]}…"
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef")
