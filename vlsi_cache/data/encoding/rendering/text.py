"""Pieces of text: spans, beginnings in common, patterns of tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["Span", "any_of", "common_beginning"]

Span = tuple[int, int]
"""First character, and one past the last."""

_PIECE = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]|\w+|\s|.", re.DOTALL)


def any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Pattern that matches any of the tokens, longer ones first."""
    longest_first = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def common_beginning(first: str, second: str) -> str:
    """The longest text that both begin with, in whole words and tags.

    ``<think>`` and ``<tool_call>`` have nothing in common.
    """
    length = 0
    for own, other in zip(_PIECE.finditer(first), _PIECE.finditer(second), strict=False):
        if own.group() != other.group():
            break
        length = own.end()
    return first[:length]
