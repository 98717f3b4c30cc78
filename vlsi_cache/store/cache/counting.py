"""All shards of a cache to one tally, by one process or by several."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final, Protocol

from vlsi_cache.manifest import CacheManifest
from vlsi_cache.store.cache.distances import compared_share
from vlsi_cache.store.cache.tally import Tally
from vlsi_cache.store.shards.records import ShardRecord

__all__ = ["CountedShards", "new_tally", "tally_shards"]

_PART_TOKENS: Final = 2**16
"""Tokens that are in memory at once, unless one sample has more."""
_RUNS: Final = 64
"""Runs of neighbouring shards. Each is counted by one process, and the sums follow from the runs:
so they are the same with any number of processes."""


class CountedShards(Protocol):
    """What counting needs of an open cache. It is sent to other processes, which open their own."""

    path: str | Path
    manifest: CacheManifest

    def iter_parts(self, shard_index: int, num_tokens: int) -> Iterator[ShardRecord]:
        """Yield a published shard in parts of whole samples."""


def new_tally(manifest: CacheManifest, num_tokens: int) -> Tally:
    """Return an empty tally, for about so many tokens."""
    num_taps, kept = len(manifest.taps), manifest.sampling.k + manifest.sampling.m
    return Tally(num_taps, compared_share(num_tokens, num_taps, kept))


def tally_shards(
    cache: CountedShards, shards: Sequence[int], num_tokens: int, processes: int
) -> Tally:
    """Read some shards once, part by part.

    Args:
        cache: an open cache.
        shards: published shards, ascending.
        num_tokens: response tokens of all of them.
        processes: processes that read at once.

    Raises:
        CacheError: a shard is damaged.
    """
    size = max(1, -(-len(shards) // _RUNS))
    runs = [shards[first : first + size] for first in range(0, len(shards), size)]
    count = functools.partial(_count, cache, num_tokens=num_tokens)
    total = new_tally(cache.manifest, num_tokens)
    if min(processes, len(runs)) <= 1:
        for run in runs:
            total.merge(count(run))
        return total
    # not forked: the threads of numpy, zarr and an object store's client would be lost
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(runs)), context) as pool:
        try:
            for tally in pool.map(count, runs):
                total.merge(tally)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return total


def _count(cache: CountedShards, shards: Sequence[int], *, num_tokens: int) -> Tally:
    tally = new_tally(cache.manifest, num_tokens)
    for shard_index in shards:
        for part in cache.iter_parts(shard_index, _PART_TOKENS):
            tally.add(part)
    return tally
