"""Faults that arise in a loader's worker process, as if they had arisen here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vlsi_cache.errors import VlsiCacheError

__all__ = ["workers_faults"]


@contextmanager
def workers_faults() -> Iterator[None]:
    """Undo torch's wrapping, which hands a worker's fault on with its traceback for a text."""
    try:
        yield
    except VlsiCacheError as error:
        if not error.what.startswith("Caught "):
            raise
        sentence = error.what.rstrip().splitlines()[-1].partition(": ")[2]
        raise type(error)(sentence) from error
