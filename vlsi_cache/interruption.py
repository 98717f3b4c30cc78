"""A request to stop, which long work notices at the end of its running step.

The command line asks for it when a signal comes. Nothing here installs a signal handler, so that
Ctrl-C stays an ordinary ``KeyboardInterrupt`` for a caller of the library.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Interrupted", "ask_to_stop", "finishing_steps", "requested_signal", "stop_if_asked"]

_GO_ON = "run the same command again to go on"


class Interrupted(KeyboardInterrupt):
    """The work has stopped on request, and can go on later.

    Args:
        where: how far it was, such as "at step 340 of 5,000".
        signal_number: the signal that asked for it.
    """

    def __init__(self, where: str, signal_number: int) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(f"interrupted {where}; {_GO_ON}")


class _State:
    """The request, and how many contexts will notice it."""

    signal_number: int | None = None
    depth = 0


@contextmanager
def finishing_steps() -> Iterator[None]:
    """Notice a request in here by ``requested_signal``, and not by an exception in the midst."""
    _State.depth += 1
    try:
        yield
    finally:
        _State.depth -= 1


def ask_to_stop(signal_number: int, where: str) -> bool:
    """Ask for a stop.

    Args:
        signal_number: the signal that came.
        where: what is at work, for the message if it stops here.

    Returns:
        Whether the running step ends first.

    Raises:
        Interrupted: nothing at work would notice the request.
    """
    if not _State.depth:
        raise Interrupted(where, signal_number)
    _State.signal_number = signal_number
    return True


def requested_signal() -> int | None:
    """Return the signal that asked for a stop, if one has."""
    return _State.signal_number


def stop_if_asked(where: str, signal_number: int | None = None) -> None:
    """Stop here if a stop was asked for.

    Args:
        where: how far the work is.
        signal_number: the signal, if another process received it.

    Raises:
        Interrupted: a stop was asked for.
    """
    number = signal_number or _State.signal_number
    if number:
        _State.signal_number = None
        raise Interrupted(where, number)
