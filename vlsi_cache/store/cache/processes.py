"""Further processes of a command: how they start, and who ends them."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext
from types import FrameType, ModuleType

__all__ = ["fresh_processes", "processes_begin"]


def fresh_processes() -> SpawnContext:
    """Return the context of processes that begin with nothing of this one.

    Forked ones would lose the threads of numpy, of zarr, of an object store's client and of a GPU.
    """
    return multiprocessing.get_context("spawn")


@contextlib.contextmanager
def processes_begin() -> Iterator[None]:
    """Start fresh processes in here. They see no Ctrl-C, and nothing of the caller's script.

    Each would otherwise import the script, and do once more what stands there without a guard.
    """
    script = sys.modules["__main__"]
    with _interrupts_held():
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = script


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back. Processes that start meanwhile never see it: their parent ends them.

    The mask is what they inherit. The parent itself needs a handler too: another thread may
    take the signal, and an interruption in the middle of a start would leave half a process.
    """
    resource_tracker.ensure_running()  # it would lift the mask if it started later
    held: list[FrameType | None] = []
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    if is_main and handler is not None:
        signal.signal(signal.SIGINT, lambda _, frame: held.append(frame))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if is_main and handler is not None:
            signal.signal(signal.SIGINT, handler)
    if held and callable(handler):
        handler(signal.SIGINT, held[0])
