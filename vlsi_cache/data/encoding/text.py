"""Pieces of text: spans, beginnings in common, patterns of tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["Span", "any_of", "common_beginning"]

Span = tuple[int, int]
"""First character, and one past the last."""


def any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Pattern that matches any of the tokens, longer ones first."""
    longest_first = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def common_beginning(first: str, second: str) -> str:
    """The longest text that both begin with."""
    length = 0
    limit = min(len(first), len(second))
    step = limit
    # Halved steps, because slices compare much faster than characters do.
    while step:
        if first[length : length + step] == second[length : length + step]:
            length += step
        step = min((step + 1) // 2 if step > 1 else 0, limit - length)
    return first[:length]
