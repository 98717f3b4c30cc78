"""The order of a stage's samples: a function of seed, epoch and process.

Neighbouring samples may be stored together, so they stay neighbours for a while. *Groups* of
neighbours are shuffled, and then the samples inside a *window* of a few groups. What is decoded for
one sample of a window serves the others. Each process gets a slice of the shuffled
groups. Where lengths are given, samples of like length out of some fifty batches share a batch, and
these batches are shuffled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NamedTuple, Protocol, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "GroupOrder",
    "Indices",
    "Parcel",
    "ProcessSlice",
    "SampleOrder",
    "plain_order",
    "slice_batches",
]

Indices = NDArray[np.int64]

_POOL_BATCHES: Final = 50
"""Batches out of which like lengths are grouped, as in transformers' ``LengthGroupedSampler``."""


class Parcel(NamedTuple):
    """Groups that can be read at the same time."""

    groups: Sequence[Indices]
    """Indices of neighbouring samples, group by group."""
    is_last: bool
    """Whether the epoch ends with it."""


class SampleOrder(Protocol):
    """The samples of an epoch in groups, which ``slice_batches`` shuffles."""

    @property
    def num_samples(self) -> int:
        """Samples of an epoch."""

    @property
    def window(self) -> int:
        """Groups among which samples are shuffled."""

    def parcels(self, epoch: int) -> Iterator[Parcel]:
        """Yield the groups of an epoch: one parcel, unless samples have yet to arrive."""


@final
@dataclass(frozen=True, slots=True)
class GroupOrder:
    """All groups at once, in every epoch."""

    groups: Sequence[Indices]
    """Indices of neighbouring samples, group by group."""
    window: int
    """Groups among which samples are shuffled."""

    @property
    def num_samples(self) -> int:
        """Samples of an epoch."""
        return sum(map(len, self.groups))

    def parcels(self, epoch: int) -> Iterator[Parcel]:
        """Yield all groups as one parcel."""
        yield Parcel(self.groups, is_last=True)


def plain_order(num_samples: int, left_out: Sequence[int] = ()) -> GroupOrder:
    """Return the order of samples that share nothing: any is as good as another.

    Args:
        num_samples: number of samples.
        left_out: indices of samples that are not in it.
    """
    samples = np.arange(num_samples, dtype=np.int64)
    return GroupOrder((samples[~np.isin(samples, left_out)],), window=1)


@dataclass(frozen=True, slots=True)
class ProcessSlice:
    """One process's slice of every epoch.

    All processes get the same number of batches, since they step together. Every sample goes to
    one process, once. Only the last batches of an epoch may be short of samples.
    """

    seed: int
    """Seed of the order."""
    batch_size: int
    """Most samples of a batch."""
    rank: int = 0
    """Index of the process."""
    num_ranks: int = 1
    """Processes that train together."""
    lengths: Indices | None = None
    """About how long each sample is, to group by it. None not to."""

    def num_batches(self, num_samples: int) -> int:
        """Count the batches of an epoch, the same for every process."""
        return -(-num_samples // (self.num_ranks * self.batch_size))


def slice_batches(order: SampleOrder, process: ProcessSlice, epoch: int) -> Iterator[list[int]]:
    """Yield a process's batches of an epoch, as indices of samples.

    A parcel's last samples, if too few for a batch of every process, go with the next parcel.
    There may be fewer batches than ``process.num_batches``. This happens when a process has no
    sample at the end, or when the order counted samples that later turned out to have failed.
    """
    whole = process.num_ranks * process.batch_size
    remaining: list[Indices] = []
    for number, parcel in enumerate(order.parcels(epoch)):
        # every process shuffles the groups alike, so that their slices do not overlap …
        shared = _generator(process.seed, epoch, number)
        permuted = _permuted(parcel.groups, process.num_ranks, shared)
        groups = [*remaining, *permuted]
        total = sum(map(len, groups))
        given = total if parcel.is_last else total // whole * whole
        first, stop = (
            given * edge // process.num_ranks for edge in (process.rank, process.rank + 1)
        )
        most = -(-given // process.num_ranks)
        # … and shuffles its own slice by itself
        own = _generator(process.seed, epoch, number, process.rank)
        samples = _windows(_cut(groups, first, stop), order.window, own)
        if process.lengths is not None:
            samples = _grouped(samples, process.lengths, process.batch_size, own)
        for size in _sizes(stop - first, most, process.batch_size):
            yield list(islice(samples, size))
        remaining = _cut(groups, given, total)


def _permuted(
    groups: Sequence[Indices], num_ranks: int, shared: np.random.Generator
) -> list[Indices]:
    """Permute the groups, and what cannot be permuted so: the samples of a single group.

    Each process would otherwise get the same stretch of it in every epoch.
    """
    order = shared.permutation(len(groups))
    if len(groups) == 1 and num_ranks > 1:
        return [shared.permutation(groups[0])]
    return [groups[i] for i in order]


def _generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def _cut(groups: Sequence[Indices], first: int, stop: int) -> list[Indices]:
    """Return the samples from ``first`` up to ``stop``; groups at the ends may be cut."""
    found = []
    start = 0
    for group in groups:
        inside = group[max(first - start, 0) : max(stop - start, 0)]
        if len(inside):
            found.append(inside)
        start += len(group)
    return found


def _windows(
    groups: Sequence[Indices], window: int, generator: np.random.Generator
) -> Iterator[int]:
    for start in range(0, len(groups), window):
        pool: Any = np.concatenate(groups[start : start + window])
        yield from generator.permutation(pool).tolist()


def _grouped(
    samples: Iterator[int], lengths: Indices, batch_size: int, generator: np.random.Generator
) -> Iterator[int]:
    """Reorder shuffled samples, so that those of like length are neighbours, batch by batch.

    Samples of a batch stay as random as the shuffle made them, but for their lengths. Batches come
    in any order, so that the lengths of successive batches say nothing. What makes no whole batch
    at the end is any of the samples.
    """
    while taken := list(islice(samples, _POOL_BATCHES * batch_size)):
        pool = np.array(taken, np.int64)
        rest = len(pool) % batch_size
        whole = pool[rest:]
        batches = whole[lengths[whole].argsort(kind="stable")].reshape(-1, batch_size)
        yield from generator.permutation(batches).ravel().tolist()
        yield from pool[:rest].tolist()


def _sizes(count: int, most: int, batch_size: int) -> list[int]:
    """Return the sizes of ``count`` samples' batches, as many as a process with ``most`` has."""
    if not count:
        return []
    num_batches = -(-most // batch_size)
    last = count - (num_batches - 1) * batch_size
    if last == 0 and batch_size > 1:
        # the others have one sample more, alone in their last batch: move one to a last batch here
        return [batch_size] * (num_batches - 2) + [batch_size - 1, 1]
    return [batch_size] * (num_batches - 1) + [last] * (last > 0)
