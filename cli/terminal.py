"""Log lines as a user sees them: plain in a file, above a live line in a terminal."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Final, Literal, TextIO

from vlsi_cache.cli.streams import LineHandler
from vlsi_cache.errors import printable
from vlsi_cache.phases import LIVE, phase, speaks_for_all

if TYPE_CHECKING:
    from rich.live import Live

__all__ = ["counting", "import_libraries", "importing", "log_to", "quieten_libraries"]

_DUMB: Final = ("dumb", "unknown")
_IMPORTING: Final = "importing torch and transformers"


def log_to(stream: Literal["stdout", "stderr"]) -> None:
    """Send the library's log lines to ``stdout`` or ``stderr``."""
    lines = sys.stdout if stream == "stdout" else sys.stderr
    is_dumb = os.environ.get("TERM", "").lower() in _DUMB  # as rich has it: no line is written over
    terminal = next((one for one in (lines, sys.stderr) if one.isatty() and not is_dumb), None)
    handler: logging.Handler = LineHandler(lines)
    if terminal is not None:
        handler = _LiveHandler(lines, terminal)
    handler.setFormatter(_Formatter())
    root = logging.getLogger("vlsi_cache")
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO if terminal is None else LIVE)
    if not speaks_for_all():
        root.setLevel(logging.WARNING)
    root.propagate = False


def import_libraries() -> None:
    """Import what takes seconds, after the first line is on the screen."""
    with phase(_IMPORTING):
        import vlsi_cache.student
        import vlsi_cache.teacher  # noqa: F401 (for its own imports)
    quieten_libraries()


def importing() -> AbstractContextManager[object]:
    """Report the import of what takes seconds, while the context lasts."""
    if {"torch", "transformers"} <= sys.modules.keys():
        return nullcontext()
    return phase(_IMPORTING)


@contextmanager
def counting(what: str, unit: str, *, each: int = 1) -> Iterator[Callable[[int, int], None]]:
    """Report a phase whose work calls back with what is done, and with all.

    It says nothing in its first second.

    Args:
        what: what is done, to follow "while".
        unit: the name of what is counted, in the plural.
        each: number of things in one unit.
    """
    with phase(what, patient=True) as one:
        one.unit = unit
        reported = 0

        def report(done: int, total: int) -> None:
            nonlocal reported
            one.total, whole = -(-total // each), -(-done // each)
            one.advance(whole - reported)
            reported = whole

        yield report


def quieten_libraries() -> None:
    """Hide other libraries' progress bars, which would stand between our own lines.

    What they warn of is printed once. bitsandbytes says a line for each linear map of each batch.
    """
    from datasets.utils.logging import disable_progress_bar as quiet_datasets
    from transformers.utils.logging import disable_progress_bar as quiet_transformers

    quiet_transformers()
    quiet_datasets()
    fallback = logging.lastResort  # it prints what no handler takes
    if fallback is not None and not any(isinstance(one, _Once) for one in fallback.filters):
        fallback.addFilter(_Once())


class _Once(logging.Filter):
    """Drops lines that were there before, of the last thousands of different ones."""

    _MOST: Final = 10_000

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[tuple[str, str]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line is to be printed."""
        line = record.name, record.getMessage()
        is_new = line not in self._seen
        if len(self._seen) >= self._MOST:
            self._seen.clear()
        self._seen.add(line)
        return is_new


class _Formatter(logging.Formatter):
    """Marks a warning as one, in a terminal and in a file."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message, behind its level if that is a warning or worse."""
        lines = super().format(record).split("\n")
        text = "\n".join(printable(line, len(line)) for line in lines)  # names may hold escapes
        return f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text


class _LiveHandler(LineHandler):
    """Prints lines, and below them the state of what is at work, written over.

    Args:
        lines: where lines go; a terminal or not.
        terminal: where the live line goes.
    """

    def __init__(self, lines: TextIO, terminal: TextIO) -> None:
        super().__init__(lines)
        self.terminal = terminal
        self.process = os.getpid()
        self._live: Live | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line, or write the live line over. Forked workers have no live line."""
        try:
            self._write(record)
        except OSError:  # such as a terminal that was closed
            self.handleError(record)
            self.terminal, self._live = self.stream, None

    def _write(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if os.getpid() != self.process:
            if record.levelno > LIVE:
                self._print(text)
        elif record.levelno == LIVE:
            self._show(text)
        elif not getattr(record, "repeats_live_line", False):
            self._clear()
            self._print(text)

    def _print(self, text: str) -> None:
        self.stream.write(f"{text}\n")
        self.stream.flush()

    def _show(self, text: str) -> None:
        if not text:
            self._clear()
            return
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        line = Text(text, style="cyan", no_wrap=True, overflow="ellipsis")
        if self._live is None:
            # No thread of its own: a worker would inherit its lock. No redirection: the lines of
            # others go where they always go.
            self._live = Live(
                console=Console(file=self.terminal),
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        self._live.update(line, refresh=True)

    def _clear(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
