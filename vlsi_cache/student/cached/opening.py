"""Opening the cache that a student learns from, and refusing one that does not fit its data."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Final

from vlsi_cache.errors import CacheError, CacheMismatchError, counted
from vlsi_cache.store import Cache, is_begun, open_cache
from vlsi_cache.student.cached.checks import validate_contents
from vlsi_cache.training import Run
from vlsi_cache.training.processes import from_main_process

__all__ = [
    "open_cache_of",
    "open_matching_cache",
    "open_record",
    "recorded_failures",
    "validate_data",
    "wait_for_cache",
]

logger = logging.getLogger(__name__)

_POLL_SECONDS: Final = (0.5, 15.0)
"""Pause between two looks for the cache: the first, and the longest."""


def open_matching_cache(run: Run) -> Cache:
    """Open the recipe's cache, and refuse one that stage two cannot learn this data from.

    With ``interaction.follow`` it waits for a cache that has not begun.

    Raises:
        CacheError: there is no cache, or it is incomplete and not to be followed.
        CacheMismatchError: the cache was made for other data, or lacks what ``tail`` reads.
    """
    settings = run.recipe.interaction
    if settings.follow:
        cache = wait_for_cache(run.recipe.cache_path, settings.follow_timeout_seconds)
    else:
        cache = open_cache(run.recipe.cache_path)
    validate_contents(cache, settings)
    validate_data(cache, run)
    if settings.tail == "sample":
        _warn_without_draws(cache)
    return cache


def _warn_without_draws(cache: Cache) -> None:
    if not cache.manifest.sampling.m:
        logger.warning(
            "the cache holds the %d most likely tokens and no draws. Scaled to sum to 1, they are "
            "a biased target",
            cache.manifest.sampling.k,
        )


def recorded_failures(run: Run, cache: Cache | None) -> dict[int, str]:
    """Return index → reason of the samples that a complete cache records as failed.

    A cache that still grows does not show all of them yet, so it is not asked.

    Args:
        run: what all stages share.
        cache: the cache of stage two. If None, the recipe's is taken if there is one of this data.
    """
    if cache is None:
        try:
            cache = open_cache(run.recipe.cache_path) if is_begun(run.recipe.cache_path) else None
        except CacheError as error:
            logger.warning("the cache is not looked at, since no stage needs it: %s", error)
    if cache is None or cache.manifest.dataset.fingerprint != run.fingerprint():
        return {}
    # the main process's view: in each process's own, more may have arrived
    return from_main_process(cache.failures() if cache.is_complete else {})


def wait_for_cache(path: str | Path, timeout_seconds: float) -> Cache:
    """Open a cache, once it has begun: its teacher may still be training verbalizers.

    Raises:
        CacheError: the cache did not begin in time, or cannot be opened.
    """
    began = time.monotonic()
    pause, most = _POLL_SECONDS
    while not is_begun(path) and time.monotonic() - began < timeout_seconds:
        if pause == _POLL_SECONDS[0]:
            logger.info("waiting for the cache to begin: %s", path)
        time.sleep(min(pause, timeout_seconds))
        pause = min(2 * pause, most)
    return open_cache(path)


def open_cache_of(run: Run) -> Cache:
    """Open the recipe's cache to compare a model with it; it may be incomplete.

    Raises:
        CacheError: there is no cache.
        CacheMismatchError: the cache was made for other data.
    """
    return open_record(run.recipe.cache_path, run)


def open_record(path: str | Path, run: Run) -> Cache:
    """Open a cache of a run's data to compare a model with it; it may be incomplete.

    Raises:
        CacheError: there is no cache.
        CacheMismatchError: the cache was made for other data.
    """
    cache = open_cache(path)
    validate_data(cache, run)
    _warn_without_draws(cache)
    return cache


def validate_data(cache: Cache, run: Run) -> None:
    """Refuse a cache of other data.

    Raises:
        CacheMismatchError: it was made for other data.
    """
    identity, data = cache.manifest.dataset, run.data
    if identity.fingerprint != run.fingerprint():
        raise CacheMismatchError(
            "cache was made for other data" + _first_change(cache, run),
            where=cache.path,
            expected=f"{counted(identity.num_samples, 'sample')} of {identity.source} "
            f"({identity.fingerprint[:12]})",
            found=f"{counted(len(data), 'sample')} of {data.source} ({run.fingerprint()[:12]})",
            mend="Give the data (and data.limit) that was dumped, or dump the teacher again into a "
            "new folder",
        )


def _first_change(cache: Cache, run: Run) -> str:
    """Name the first sample with other content. One that was mended since is other data too."""
    if len(cache) != len(run.data) or not cache.is_complete:
        return ""
    failures = cache.failures()
    recorded = list(cache.keys())
    for index, dumped in enumerate(recorded):
        sample_id, key = run.data.identify(index)
        if key != dumped and key in recorded:
            return f": sample {sample_id!r} stands in another place than in the dump"
        if key != dumped:
            reason = failures.get(index)
            failed = f", and was recorded as failed: {reason}" if reason else ""
            return f": sample {sample_id!r} has changed since the dump{failed}"
    return ""
