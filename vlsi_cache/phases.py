"""``phase``: reports what is at work, how far it is and how long it will take, as log records.

Nothing here knows a terminal. A phase logs its beginning, a line a minute, and its end. At the
level ``LIVE``, below INFO, it also logs its state every second, for a line that is written over.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

__all__ = [
    "LIVE",
    "Phase",
    "duration",
    "phase",
    "place_of_work",
    "speaks_for_all",
    "tracked",
]

T = TypeVar("T")

logger = logging.getLogger(__name__)

LIVE: Final = 15
"""Level of the records for a line that is written over. An empty one clears the line."""
_LINE_SECONDS: Final = 60.0
"""Longest silence of a log file."""
_LIVE_SECONDS: Final = 1.0
_WORTH_A_LINE_SECONDS: Final = 2.0
"""The end of a shorter phase is no news."""

_active: list[Phase] = []
_ended: list[str] = []
"""What the last phase did that has ended."""


class Phase:
    """Something that takes a while. ``phase`` makes it.

    Args:
        what: what is done, to follow "while", such as "loading the teacher".
        total: how many there are to do, if that is known.
        unit: the name of what is counted, in the plural. Without a total, ``begin_at`` brings it.
        patient: whether the first line comes after a second only. Most such phases end before.
    """

    def __init__(
        self, what: str, total: int | None = None, unit: str = "", *, patient: bool = False
    ) -> None:
        self.what = what
        self.total = total
        self.unit = unit
        self.detail = ""
        self._done = 0
        self._before = 0
        self._began = time.monotonic()
        self._spoke = self._began
        self._ended = threading.Event()
        self._waits = patient

    def begin_at(self, done: int, total: int) -> None:
        """Report how many there are, where so many were done before. The clock starts again."""
        self.total = total
        self._done = self._before = done
        self._began = time.monotonic()
        before = f", {done:,} of them done before" if done else ""
        logger.info("%s (%s%s)", self.what, self._size(total), before)

    def advance(self, count: int = 1) -> None:
        """Count what is done."""
        self._done += count

    def say(self, line: str) -> None:
        """Log a line of the caller's own, which stands for this minute's."""
        self._spoke = time.monotonic()
        logger.info("%s", line)

    def pace(self) -> str:
        """Return the speed and the time remaining, or nothing before there is a speed."""
        seconds = time.monotonic() - self._began
        num_new = self._done - self._before
        if not num_new or self.total is None:
            return ""
        each = max(seconds, 1e-9) / num_new
        # A rate below one a second rounds to 0.00 where steps are slow.
        unit = self.unit.removesuffix("s")
        speed = f"{each:.3g} s/{unit}" if each > 1 else f"{1 / each:.3g} {self.unit}/s"
        return f"{speed}  {duration((self.total - self._done) * each)} remaining"

    def state(self) -> str:
        """Return how far the phase is."""
        if self.total is None:
            return f"{self.what}: {duration(time.monotonic() - self._began)} so far"
        count = f"{self._done:,} of {self.total:,} {self.unit}"
        return f"{self.what}: " + "  ".join(filter(None, (count, self.detail, self.pace())))

    def _title(self) -> str:
        return self.what if self.total is None else f"{self.what} ({self._size(self.total)})"

    def _size(self, total: int) -> str:
        return f"{total:,} {self.unit.removesuffix('s') if total == 1 else self.unit}"

    def _begin(self) -> None:
        _active.append(self)
        if not self._waits and (self.total is not None or not self.unit):
            logger.info("%s", self._title())
        threading.Thread(target=self._report, name="vlsi-cache phase", daemon=True).start()

    def _end(self, *, failed: bool) -> None:
        self._ended.set()
        _active.remove(self)
        _ended[:] = [self.what]
        logger.log(LIVE, "")
        seconds = time.monotonic() - self._began
        if not failed and seconds >= _WORTH_A_LINE_SECONDS:
            logger.info("%s: done in %s", self.what, duration(seconds))

    def _report(self) -> None:
        while not self._ended.wait(_LIVE_SECONDS):
            if _active[-1:] != [self]:
                self._spoke = time.monotonic()  # a phase inside this one speaks
                continue
            if self._waits:
                self._waits = False
                logger.info("%s", self._title(), extra={"repeats_live_line": True})
            logger.log(LIVE, "%s", self.state())
            if time.monotonic() - self._spoke >= _LINE_SECONDS:
                self._spoke = time.monotonic()
                # Where there is a live line, it has said this already.
                logger.info("%s", self.state(), extra={"repeats_live_line": True})


@contextmanager
def phase(
    what: str, *, total: int | None = None, unit: str = "", patient: bool = False
) -> Iterator[Phase]:
    """Report a phase while the context lasts.

    Args:
        what: what is done, to follow "while", such as "loading the teacher".
        total: how many there are to do, if that is known.
        unit: the name of what is counted, in the plural.
        patient: whether the first line comes after a second only.
    """
    one = Phase(what, total, unit, patient=patient)
    one._begin()  # noqa: SLF001 (its maker)
    failed = True
    try:
        yield one
        failed = False
    finally:
        one._end(failed=failed)  # noqa: SLF001


def tracked(items: Iterable[T], what: str, *, total: int, unit: str) -> Iterator[T]:
    """Yield the items, and report how many are done."""
    with phase(what, total=total, unit=unit) as one:
        for item in items:
            yield item
            one.advance()


def speaks_for_all() -> bool:
    """Report whether this process logs what all processes of a run find alike: the first one."""
    return os.environ.get("RANK", "0") == "0"


def place_of_work() -> str:
    """Return how far the work is, in words: while a phase, after one, or at the start."""
    if _active:
        return f"while {_active[-1].what}"
    return f"after {_ended[0]}" if _ended else "at the start"


def duration(seconds: float) -> str:
    """Write a number of seconds in two units at most, such as ``3 h 20 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 10:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min"
