"""Jobs that share a folder, one after the other: a job array starts all of them at once."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vlsi_cache.training.processes import on_main_process

__all__ = ["one_job_at_a_time"]

_LOCK: Final = ".lock"

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def one_job_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other job is inside, and keep the others out until the end.

    Processes that were launched together are one job. The system drops a killed job's lock. Where
    files cannot be locked (a read-only folder, a file system without locks), nobody waits.
    """
    held = contextlib.ExitStack()
    with held:
        on_main_process(lambda: held.callback(_release, _lock(folder)))
        yield


def _lock(folder: Path) -> int | None:
    descriptor = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("%s: waiting for the job that is at work here", folder)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        _release(descriptor)
        return None
    return descriptor


def _release(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)
