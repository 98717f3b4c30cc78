"""Stamps of files: what the system says of a file, which changes with every change of it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np

__all__ = ["Stamps", "are_settled", "settled_stamps", "stamp_of_open", "stamps_of"]

Stamps = np.ndarray[Any, np.dtype[np.int64]]
"""``[N, 4]``: size, time of the last change of content, of the last change at all (both in
nanoseconds), and inode. A file that is not there has −1 in all places."""

_THREADS: Final = 8
_AT_ONCE: Final = 4096
_TICK_NS: Final = 20_000_000
"""Longer than the steps in which a system counts the time of changes. A second change in the same
step leaves no trace."""
_COARSE_NS: Final = 2_000_000_000
"""The same for file systems that keep whole seconds."""


def stamps_of(names: Sequence[str]) -> Stamps:
    """Stamp files, many at once: on a network each waits for its answer."""
    if len(names) < _AT_ONCE:
        return _stamps(names)
    with ThreadPoolExecutor(_THREADS) as pool:
        starts = range(0, len(names), _AT_ONCE)
        return np.concatenate(
            list(pool.map(lambda start: _stamps(names[start : start + _AT_ONCE]), starts))
        )


def settled_stamps(names: Sequence[str]) -> Stamps:
    """Stamp files, once a change from now on would show in their stamps.

    That takes a moment after a change. The stamps of coarse file systems may still be unsettled.
    """
    stamps = stamps_of(names)
    if not are_settled(stamps):
        time.sleep(_TICK_NS / 1e9)
        stamps = stamps_of(names)
    return stamps


def are_settled(stamps: Stamps) -> bool:
    """Whether a change from now on would show."""
    if not len(stamps):
        return True
    changed = stamps[:, 1:3]
    is_coarse = (changed % 1_000_000_000 == 0).all(axis=1)
    ages = time.time_ns() - changed.max(axis=1)
    return bool((ages > np.where(is_coarse, _COARSE_NS, _TICK_NS)).all())


def _stamps(names: Iterable[str]) -> Stamps:
    return np.array([_stamp(name) for name in names], np.int64).reshape(-1, 4)


def _stamp(name: str) -> tuple[int, int, int, int]:
    try:
        found = os.stat(name)  # noqa: PTH116 (a Path each would take as long as the call)
    except OSError:
        return (-1, -1, -1, -1)
    return _numbers(found)


def stamp_of_open(descriptor: int) -> tuple[int, int, int, int]:
    """Stamp an open file."""
    return _numbers(os.fstat(descriptor))


def _numbers(found: os.stat_result) -> tuple[int, int, int, int]:
    inode = found.st_ino & (2**63 - 1)
    return (found.st_size, found.st_mtime_ns, found.st_ctime_ns, inode)
