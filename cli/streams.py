"""Standard streams that cannot be written: a full disk, or a pipe that nobody reads any more."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TextIO

__all__ = ["LineHandler", "ending_with_streams"]

_NAMES: Final = {"stdout": "standard output", "stderr": "standard error"}


class LineHandler(logging.StreamHandler[TextIO]):
    """Prints log lines. Where they cannot be written, the work goes on without them.

    A training of hours is worth more than its log. The command says so once, if it still can.
    """

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's own name)
        """Drop a line that cannot be written."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self.acquire()
        try:
            stream, self.stream = self.stream, _silent()
        finally:
            self.release()
        name = "stdout" if stream is sys.stdout else "stderr"
        _give_up(stream)
        if error.errno != errno.EPIPE:
            _say(f"the log goes no further: {_NAMES[name]} cannot be written ({error.strerror})")


@contextmanager
def ending_with_streams() -> Iterator[None]:
    """End a command whose output cannot be written with one line, and with 1.

    Where nobody reads a pipe any more, as after ``| head``, nothing is said.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or not (broken := _find_broken(probe=b"\n")):
            raise
        _end(broken, error)
    except SystemExit as end:
        broken = _find_broken()
        if broken:
            _end(broken, broken[0][1], code=end.code)
        raise


def _find_broken(probe: bytes = b"") -> list[tuple[str, OSError]]:
    """The streams that cannot be written. What is not written yet stays, and fails again.

    Args:
        probe: is written, because what failed may have left nothing behind.
    """
    broken = []
    for name in _NAMES:
        try:
            stream = getattr(sys, name)
            stream.flush()
            if probe and name == "stdout":
                os.write(stream.fileno(), probe)
        except OSError as error:
            broken.append((name, error))
        except (AttributeError, ValueError):
            continue  # there is none, or it is closed
    return broken


def _end(broken: list[tuple[str, OSError]], error: OSError, code: object = 0) -> None:
    for name, _ in broken:
        _give_up(getattr(sys, name))
    if error.errno != errno.EPIPE:
        _say(f"error: {_NAMES[broken[0][0]]} cannot be written ({error.strerror})")
    raise SystemExit(code or 1) from None


def _give_up(stream: TextIO) -> None:
    """Let a stream write nowhere, so that the interpreter does not fail on it while it ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def _silent() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")
