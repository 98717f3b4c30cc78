"""Whether a cache holds anything to learn from: one of failures alone does not."""

from __future__ import annotations

from vlsi_cache.errors import CacheError
from vlsi_cache.store.cache.reader import Cache

__all__ = ["nothing_recorded", "validate_recorded"]


def validate_recorded(cache: Cache) -> None:
    """Refuse a cache whose samples all failed.

    Raises:
        CacheError: no sample of the complete cache could be read.
    """
    if len(cache.failures()) == len(cache):
        raise nothing_recorded(cache)


def nothing_recorded(cache: Cache) -> CacheError:
    """Return the error of a cache whose samples all failed."""
    return CacheError(
        "no sample of the cache could be read when the teacher was dumped",
        where=cache.path,
        found=next(iter(cache.failures().values()), None),
        mend="Mend the cause, and dump the teacher again into a new folder",
    )
