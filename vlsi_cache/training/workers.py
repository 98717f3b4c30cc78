"""What a loader's worker processes say: faults as if they had arisen here, and no chatter."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from vlsi_cache.errors import VlsiCacheError

__all__ = ["quiet_forks", "workers_faults"]

_PARALLELISM = "TOKENIZERS_PARALLELISM"


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


@contextmanager
def quiet_forks(workers: int) -> Iterator[None]:
    """Keep tokenizers from warning in every forked worker; workers are the parallelism here."""
    if not workers or _PARALLELISM in os.environ:
        yield
        return
    os.environ[_PARALLELISM] = "false"
    try:
        yield
    finally:
        del os.environ[_PARALLELISM]
