"""In which order a stage sees its samples: a function of seed and epoch, for every process.

Neighbouring samples share chunks of the cache, so they stay neighbours for a while: *blocks* of
them are shuffled, and samples inside a *window* of a few blocks. What is decoded for one sample of
a window then serves the others. Each process gets a stretch of the shuffled blocks to itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BlockOrder",
    "Indices",
    "Parcel",
    "SampleOrder",
    "Share",
    "plain_order",
    "share_batches",
]

Indices = NDArray[np.int64]


class Parcel(NamedTuple):
    """Blocks that are to be had at once."""

    blocks: Sequence[Indices]
    """Indices of neighbouring samples, block by block."""
    is_last: bool
    """Whether the epoch ends with it."""


class SampleOrder(Protocol):
    """What an epoch consists of; shuffling it is ``share_batches``'s."""

    @property
    def num_places(self) -> int:
        """Samples of an epoch."""

    @property
    def window(self) -> int:
        """Blocks among which samples are shuffled."""

    def parcels(self, epoch: int) -> Iterator[Parcel]:
        """The blocks of an epoch; one parcel, unless samples have to be waited for."""


@final
@dataclass(frozen=True, slots=True)
class BlockOrder:
    """All blocks at once, in every epoch."""

    blocks: Sequence[Indices]
    """Indices of neighbouring samples, block by block."""
    window: int
    """Blocks among which samples are shuffled."""

    @property
    def num_places(self) -> int:
        """Samples of an epoch."""
        return sum(map(len, self.blocks))

    def parcels(self, epoch: int) -> Iterator[Parcel]:
        """One parcel."""
        yield Parcel(self.blocks, is_last=True)


def plain_order(num_samples: int) -> BlockOrder:
    """Samples that are read one by one: any order is as good as another."""
    return BlockOrder((np.arange(num_samples, dtype=np.int64),), window=1)


@dataclass(frozen=True, slots=True)
class Share:
    """One process's part of every epoch.

    All processes get as many batches, since they step together, and every sample goes to one
    process, once. A batch is short of samples only at the end of an epoch.
    """

    seed: int
    """Of the order."""
    batch_size: int
    """Samples per batch at most."""
    rank: int = 0
    """Index of the process."""
    num_ranks: int = 1
    """Processes that train together."""

    def num_batches(self, num_places: int) -> int:
        """Batches of an epoch, the same for every process."""
        return -(-num_places // (self.num_ranks * self.batch_size))


def share_batches(order: SampleOrder, share: Share, epoch: int) -> Iterator[list[int]]:
    """A process's batches of an epoch, indices of samples.

    A parcel's remainder, which does not fill a batch for every process, goes with the next parcel.
    There may be fewer batches than ``share.num_batches``: where a process is left without a sample
    at the end, and where the order has promised more places than it has samples.
    """
    whole = share.num_ranks * share.batch_size
    left: list[Indices] = []
    for number, parcel in enumerate(order.parcels(epoch)):
        # every process draws alike up to here …
        shared = _generator(share.seed, epoch, number)
        permuted = [parcel.blocks[i] for i in shared.permutation(len(parcel.blocks))]
        blocks = [*left, *permuted]
        total = sum(map(len, blocks))
        given = total if parcel.is_last else total // whole * whole
        first, stop = (given * edge // share.num_ranks for edge in (share.rank, share.rank + 1))
        most = -(-given // share.num_ranks)
        # … and each for itself from here
        own = _generator(share.seed, epoch, number, share.rank)
        samples = _windows(_cut(blocks, first, stop), order.window, own)
        for size in _sizes(stop - first, most, share.batch_size):
            yield list(islice(samples, size))
        left = _cut(blocks, given, total)


def _generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def _cut(blocks: Sequence[Indices], first: int, stop: int) -> list[Indices]:
    """The stretch from one sample up to another; blocks at its ends may be parts."""
    parts, start = [], 0
    for block in blocks:
        part = block[max(first - start, 0) : max(stop - start, 0)]
        if len(part):
            parts.append(part)
        start += len(block)
    return parts


def _windows(
    blocks: Sequence[Indices], window: int, generator: np.random.Generator
) -> Iterator[int]:
    for start in range(0, len(blocks), window):
        pool: Any = np.concatenate(blocks[start : start + window])
        yield from generator.permutation(pool).tolist()


def _sizes(count: int, most: int, batch_size: int) -> list[int]:
    """Sizes of the batches of ``count`` samples: as many as a process with ``most`` has."""
    if not count:
        return []
    num_batches = -(-most // batch_size)
    last = count - (num_batches - 1) * batch_size
    if last == 0 and batch_size > 1:
        # one sample fewer than the others, whose last batch holds just that one: hand one on
        return [batch_size] * (num_batches - 2) + [batch_size - 1, 1]
    return [batch_size] * (num_batches - 1) + [last] * (last > 0)
