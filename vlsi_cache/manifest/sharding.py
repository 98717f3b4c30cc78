"""Which samples belong to which shard: arithmetic alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

__all__ = ["Cut", "ShardOrigin", "Sharding"]


@dataclass(frozen=True, slots=True)
class Cut:
    """A run of samples that is cut into shards of equal size."""

    num_samples: int
    """Samples of the run."""
    samples_per_shard: int
    """Samples of each shard but the last, which may hold fewer."""

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return -(-self.num_samples // self.samples_per_shard)

    def samples(self, shard_index: int) -> range:
        """Return the indices of a shard's samples in the run."""
        first = shard_index * self.samples_per_shard
        return range(first, min(first + self.samples_per_shard, self.num_samples))


@dataclass(frozen=True, slots=True)
class ShardOrigin:
    """The cache that a shard was written for."""

    part_index: int | None
    """Index of the part in a merged cache; None in a cache that is not merged."""
    shard_index: int
    """The shard's number in the part."""
    samples: range
    """Indices of its samples in the whole cache."""


class Sharding:
    """The shards of one cut, or of several cuts numbered one after the other.

    Args:
        cuts: the cache's own cut, or those of its parts.
        is_merged: whether the cuts are parts of a merged cache.
    """

    def __init__(self, cuts: Sequence[Cut], *, is_merged: bool) -> None:
        self._cuts = cuts
        self._is_merged = is_merged
        # where each cut begins, so that finding a sample takes no walk over the parts
        *self._first_shards, self.num_shards = accumulate(
            (cut.num_shards for cut in cuts), initial=0
        )
        *self._first_samples, self.num_samples = accumulate(
            (cut.num_samples for cut in cuts), initial=0
        )

    def shard_of(self, sample_index: int) -> int:
        """Return the index of the shard that holds a sample.

        Raises:
            IndexError: the sample does not exist.
        """
        if not 0 <= sample_index < self.num_samples:
            raise IndexError(f"sample {sample_index} of {self.num_samples}")
        # a cut without samples begins where the next one does, and bisection finds the next
        cut_index = bisect_right(self._first_samples, sample_index) - 1
        row = sample_index - self._first_samples[cut_index]
        return self._first_shards[cut_index] + row // self._cuts[cut_index].samples_per_shard

    def origin(self, shard_index: int) -> ShardOrigin:
        """Return a shard's origin.

        Raises:
            IndexError: the shard does not exist.
        """
        if not 0 <= shard_index < self.num_shards:
            raise IndexError(f"shard {shard_index} of {self.num_shards}")
        cut_index = bisect_right(self._first_shards, shard_index) - 1
        own_index = shard_index - self._first_shards[cut_index]
        own = self._cuts[cut_index].samples(own_index)
        first = self._first_samples[cut_index]
        return ShardOrigin(
            part_index=cut_index if self._is_merged else None,
            shard_index=own_index,
            samples=range(first + own.start, first + own.stop),
        )
