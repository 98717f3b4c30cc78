"""What the system refuses: threads, processes, files and shared memory, in one line."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from vlsi_cache.errors import SystemLimitError

__all__ = ["find_limit", "plain_limit_errors", "raise_limit"]

_PASSING: Final = (
    *(errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN),
    *(errno.ENETUNREACH, errno.ENETRESET, errno.ECONNRESET, errno.ECONNABORTED, errno.ENOTCONN),
)
"""What a network's file system says that may be well in a minute."""
_AGAIN: Final = "Then run the same command again. It goes on where it stopped"
_FEWER: Final = "set fewer workers (cache.workers, or workers of the stage)"


@dataclass(frozen=True, slots=True)
class _Limit:
    """A kind of refusal."""

    what: str
    """The problem, as a clause."""
    mend: str
    """What the user can do."""
    words: tuple[str, ...]
    """What Python, torch and other libraries say of it."""
    numbers: tuple[int, ...] = ()
    """What the system says of it."""


_LIMITS: Final = (
    _Limit(
        "too many open files",
        f"Raise the limit (ulimit -n 65536), or {_FEWER}",
        ("Too many open files", "items of ancdata"),
        (errno.EMFILE, errno.ENFILE),
    ),
    _Limit(
        "no shared memory for the batches that workers read ahead",
        "Enlarge /dev/shm (docker run --shm-size=16g, or --ipc=host), or lower the batch size, or "
        f"{_FEWER}; 0 reads in this process",
        ("shared memory(shm)", "shared memory object", "file </torch_", "signal: Bus error"),
    ),
    _Limit(
        "no more threads can be started",
        "Raise the limits of processes and of memory (ulimit -u, ulimit -v, a container's "
        f"--pids-limit), or set OMP_NUM_THREADS=1, or {_FEWER}",
        ("can't start new thread", "ThreadPoolBuildError"),
    ),
    _Limit(
        "no more processes can be started, or no memory is there for them",
        "Raise the limits of processes and of memory (ulimit -u, a container's --pids-limit and "
        f"--memory), or {_FEWER}",
        (),
        (errno.EAGAIN, errno.ENOMEM),
    ),
    _Limit(
        "a file system does not answer, or has lost a file for the moment",
        "Wait until it is there again",
        (),
        _PASSING,
    ),
    _Limit(
        "a worker that reads ahead has ended",
        f"If it says nothing itself, its memory ran out most likely: {_FEWER}, or lower the batch "
        "size",
        ("killed by signal", "exited unexpectedly"),
    ),
)
_NO_MEMORY: Final = _Limit(
    "the memory of this machine ran out", f"Lower the batch size, or {_FEWER}", ()
)
_OF_FILES: Final = (errno.EMFILE, errno.ENFILE, *_PASSING)


def find_limit(error: BaseException) -> SystemLimitError | None:
    """Return the error that says which limit of the system an error of a library stands for.

    None is for every other error, and for one that names a mend already.
    """
    if isinstance(error, MemoryError):
        return _said(_NO_MEMORY, str(error))
    text = str(error) if isinstance(error, OSError | RuntimeError) or _is_panic(error) else ""
    number, names_file = None, False
    if isinstance(error, OSError):
        number, names_file = error.errno, error.filename is not None
    for limit in _LIMITS:
        counts = number in limit.numbers and (number in _OF_FILES or not names_file)
        if counts or any(words in text for words in limit.words):
            return _said(limit, text)
    return None


@contextmanager
def plain_limit_errors() -> Iterator[None]:
    """Raise a ``SystemLimitError`` in place of what a library says of a limit of the system.

    Raises:
        SystemLimitError: the system refuses a thread, a process, a file or memory.
    """
    try:
        yield
    except BaseException as error:  # a panic of a library in Rust is not an Exception
        raise_limit(error)
        raise


def raise_limit(error: BaseException) -> None:
    """Raise what ``find_limit`` finds, if that is anything: it is not a problem of a sample.

    Raises:
        SystemLimitError: the error stands for a limit of the system.
    """
    found = find_limit(error)
    if found is not None:
        raise found from error


def _is_panic(error: BaseException) -> bool:
    return type(error).__name__ == "PanicException"


def _said(limit: _Limit, text: str) -> SystemLimitError:
    """Return the error with the line that says it: a worker's begins with where it was caught."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    saying = [line for line in lines if any(words in line for words in limit.words)]
    found = next(reversed(saying or lines), None)
    return SystemLimitError(limit.what, found=found, mend=f"{limit.mend}. {_AGAIN}")
