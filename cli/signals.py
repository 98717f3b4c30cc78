"""Ctrl-C and SIGTERM: the first asks for an end with a checkpoint, the second ends at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from vlsi_cache.interruption import ask_to_stop
from vlsi_cache.phases import place_of_work

__all__ = ["stopping_on_signals"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""SIGUSR1 is what ``sbatch --signal`` is mostly asked to send before the time is up."""
_SAME_SECONDS: Final = 1.0
"""A launcher passes on what the terminal has sent to its processes too. That is one signal."""


class _Handler:
    def __init__(self) -> None:
        self.process = os.getpid()
        self.first: float | None = None

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self.process:
            return  # a worker: the process that reads its batches ends it
        now = time.monotonic()
        if self.first is not None:
            if now - self.first > _SAME_SECONDS:
                os._exit(128 + number)
            return
        ask_to_stop(number, place_of_work())
        self.first = now
        # Not by logging or a stream, whose locks this thread may hold just now.
        name = signal.Signals(number).name
        os.write(2, f"\n{name}: stopping at the end of this step, a second ends at once\n".encode())


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Turn the signals into a request to stop, while the context lasts."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    handler = _Handler()
    earlier = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, before in earlier.items():
            signal.signal(number, before)
