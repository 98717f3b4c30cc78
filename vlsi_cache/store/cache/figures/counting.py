"""All shards of a cache to one tally, by one process or by several."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import zarr

from vlsi_cache.errors import VlsiCacheError
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.phases import phase
from vlsi_cache.store.cache.figures.distances import compared_share
from vlsi_cache.store.cache.figures.tally import Tally
from vlsi_cache.store.cache.processes import fresh_processes, processes_begin
from vlsi_cache.store.shards.records import ShardRecord

__all__ = ["CountedShards", "available_cores", "new_tally", "tally_shards"]

logger = logging.getLogger(__name__)

_PART_TOKENS: Final = 2**14
"""Tokens that are in memory at once, unless one sample has more. Larger parts leave the processor's
caches."""
_RUNS: Final = 64
"""Runs of neighbouring shards. Each is counted by one process, and the sums follow from the runs:
so they are the same with any number of processes."""


class CountedShards(Protocol):
    """What counting needs of an open cache. It is sent to other processes, which open their own."""

    path: str | Path
    manifest: CacheManifest

    def iter_parts(self, shard_index: int, num_tokens: int) -> Iterator[ShardRecord]:
        """Yield a published shard in parts of whole samples."""


class _ProcessEndedError(Exception):
    """A process ended before it sent what it counted. Its text says how."""


def available_cores() -> int:
    """Return how many cores this process may use. Not every system says which."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
    runs = [_short(shards[first : first + size]) for first in range(0, len(shards), size)]
    processes = min(processes, len(runs))
    count = functools.partial(_count, cache, num_tokens=num_tokens, processes=processes)
    if processes > 1:
        try:
            with contextlib.closing(_counted_by_several(count, runs, processes)) as tallies:
                return _merged(cache, num_tokens, runs, tallies)
        except _ProcessEndedError as error:
            logger.warning("%s: %s. One process counts everything again", cache.path, error)
    return _merged(cache, num_tokens, runs, map(count, runs))


def _short(run: Sequence[int]) -> Sequence[int]:
    """Return ascending shards as a range where none is missing.

    A process that starts is sent its runs, and what a pipe does not hold would wait for it.
    """
    whole = range(run[0], run[-1] + 1)
    return whole if len(whole) == len(run) else run


def _keep_freed_memory() -> None:
    """Let the C library keep up to 64 MiB of what is freed, and not return it at once.

    Decoding takes and frees some 30 MiB for every chunk, and fresh pages cost as much time as the
    decoding itself. glibc keeps twice the largest block below 32 MiB that it has seen freed. This
    block is never touched. With other C libraries nothing changes.
    """
    np.empty(2**25 - 2**16, np.uint8)


def _merged(
    cache: CountedShards,
    num_tokens: int,
    runs: Sequence[Sequence[int]],
    tallies: Iterable[Tally],
) -> Tally:
    total = new_tally(cache.manifest, num_tokens)
    num_shards = sum(map(len, runs))
    with phase("reading the cache", total=num_shards, unit="shards", patient=True) as reading:
        for run, tally in zip(runs, tallies, strict=True):
            total.merge(tally)
            reading.advance(len(run))
    return total


def _counted_by_several(
    count: Callable[[Sequence[int]], Tally], runs: Sequence[Sequence[int]], processes: int
) -> Generator[Tally]:
    """Yield the tally of each run, in order. Each process counts each so many-th run.

    Raises:
        _ProcessEndedError: the system ended a process.
    """
    context = fresh_processes()
    workers: list[tuple[SpawnProcess, Connection]] = []
    try:
        with processes_begin():
            for first in range(processes):
                ours, theirs = context.Pipe(duplex=False)
                arguments = (count, runs[first::processes], theirs)
                process = context.Process(target=_send_tallies, args=arguments, daemon=True)
                process.start()
                theirs.close()  # so that its end is noticed here
                workers.append((process, ours))
        for number in range(len(runs)):
            yield _received(*workers[number % processes])
    finally:
        for process, ours in workers:
            process.terminate()  # an interruption does not wait for the runs
            process.join()
            ours.close()


def _send_tallies(
    count: Callable[[Sequence[int]], Tally], runs: Iterable[Sequence[int]], results: Connection
) -> None:
    with contextlib.suppress(BrokenPipeError):  # the process that asked was killed
        for run in runs:
            try:
                results.send(count(run))
            except VlsiCacheError as error:
                results.send(error)
                return


def _received(process: SpawnProcess, results: Connection) -> Tally:
    try:
        found: Tally | VlsiCacheError = results.recv()
    except (EOFError, ConnectionResetError):
        process.join()
        killed = (process.exitcode or 0) < 0
        raise _ProcessEndedError(
            "the system ended a process that counts, perhaps for want of memory"
            if killed
            else "a process that counts could not start or failed, as it says itself"
        ) from None
    if isinstance(found, VlsiCacheError):
        raise found
    return found


def _count(
    cache: CountedShards, shards: Sequence[int], *, num_tokens: int, processes: int
) -> Tally:
    _keep_freed_memory()
    tally = new_tally(cache.manifest, num_tokens)
    # the processes share the cores: more threads that decode would only take memory
    threads = max(1, available_cores() // processes)
    with zarr.config.set({"async.concurrency": threads}):
        for shard_index in shards:
            for part in cache.iter_parts(shard_index, _PART_TOKENS):
                tally.add(part)
    return tally
