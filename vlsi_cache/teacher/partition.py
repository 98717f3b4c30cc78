"""``Partition``: one job's share of the shards, among jobs that know nothing of one another."""

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
    """The I-th of N shares; it follows from the shards' numbers alone, never from who is at work.

    Raises:
        RecipeError: there is no such share.
    """

    number: int = 1
    """Which share, I, from 1."""
    count: int = 1
    """How many there are, N."""

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise _wrong(f"{self.number}/{self.count}")

    @classmethod
    def parse(cls, text: str) -> Partition:
        """``I/N``, as the command line takes it.

        Raises:
            RecipeError: it is anything else.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise _wrong(text)
        return cls(int(found[1]), int(found[2]))

    def select(self, shards: Sequence[int]) -> list[int]:
        """Those of some shards that are this share's: every N-th, so that shares are alike."""
        return [shard for shard in shards if shard % self.count == self.number - 1]


def _wrong(text: str) -> RecipeError:
    return RecipeError(
        "this is no partition",
        where="--partition",
        expected="I/N, the I-th of N shares, with I from 1 to N",
        found=text,
        mend="A job array of 8 takes 1/8, 2/8 … 8/8",
    )
