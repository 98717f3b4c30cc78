"""Names of samples: those that are given more than once get a number."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["Repetitions", "find_repetitions", "name_digest", "no_repetitions"]


class Repetitions:
    """The rows whose name an earlier row has, and the number of each. 16 bytes per such row.

    Attributes:
        rows: the rows, in ascending order.
        numbers: the number that each name gets.
    """

    def __init__(self, rows: np.ndarray[Any, Any], numbers: np.ndarray[Any, Any]) -> None:
        self.rows = rows
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.rows)

    def first(self) -> int:
        """The first row that repeats a name."""
        return int(self.rows[0])

    def name(self, row: int, name: str) -> str:
        """The name of a row: its own, or with ``#2`` and so on if it is repeated."""
        position = int(np.searchsorted(self.rows, row))
        if position == len(self.rows) or self.rows[position] != row:
            return name
        return f"{name}#{self.numbers[position]}"


def no_repetitions() -> Repetitions:
    """The repetitions of rows that have names of their own."""
    return Repetitions(np.empty(0, np.int64), np.empty(0, np.int64))


def name_digest(name: str) -> int:
    """Eight bytes that stand for a name. The names themselves are too many in large datasets."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def find_repetitions(digests: np.ndarray[Any, Any], name_of: Callable[[int], str]) -> Repetitions:
    """Find the rows whose name an earlier row has, and number them.

    The second row of a name gets 2, unless another row was given that name: then the next number
    that is free. Different names with the same digest would be numbered, too, which harms nobody.

    Args:
        digests: `name_digest` of each row's name.
        name_of: reads the name of a row.
    """
    order = np.argsort(digests, kind="stable")
    in_order = digests[order]
    is_repeated = np.concatenate([[False], in_order[1:] == in_order[:-1]])
    rows = order[is_repeated]
    numbers = np.empty(len(rows), np.int64)
    number = 1
    for position, row in enumerate(rows):
        is_same = position > 0 and digests[rows[position - 1]] == digests[row]
        number = number + 1 if is_same else 2
        name = name_of(int(row))
        while _is_given(f"{name}#{number}", in_order):
            number += 1
        numbers[position] = number
    ascending = np.argsort(rows)
    return Repetitions(rows[ascending], numbers[ascending])


def _is_given(name: str, sorted_digests: np.ndarray[Any, Any]) -> bool:
    digest = np.uint64(name_digest(name))
    position = int(np.searchsorted(sorted_digests, digest))
    return position < len(sorted_digests) and bool(sorted_digests[position] == digest)
