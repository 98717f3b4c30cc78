"""``Partition``: one job's shards, among jobs that know nothing of one another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vlsi_cache.errors import RecipeError

__all__ = ["Partition"]

_FORM: Final = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")


@dataclass(frozen=True, slots=True)
class Partition:
    """The I-th of N partitions, which follows from the shards' numbers alone.

    Raises:
        RecipeError: there is no such partition.
    """

    number: int = 1
    """Which partition, I, from 1."""
    count: int = 1
    """Number of partitions, N."""

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise _wrong(f"{self.number}/{self.count}")

    @classmethod
    def parse(cls, text: str) -> Partition:
        """Parse ``I/N``, as the command line takes it.

        Raises:
            RecipeError: the text is anything else.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise _wrong(text)
        return cls(int(found[1]), int(found[2]))

    def select(self, shards: Sequence[int]) -> list[int]:
        """Return this partition's shards: every N-th, so that all partitions are about as large."""
        return [shard for shard in shards if shard % self.count == self.number - 1]


def _wrong(text: str) -> RecipeError:
    return RecipeError(
        "this is not a partition",
        where="--partition",
        expected="I/N, the I-th of N partitions, with I from 1 to N",
        found=text,
        mend="A job array of 8 takes 1/8, 2/8 … 8/8",
    )
