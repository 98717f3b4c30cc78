"""``Team``: processes that hold one teacher together, or one process by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from vlsi_cache.interruption import requested_signal, stop_if_asked
from vlsi_cache.training.processes import from_main_process, gathered, on_main_process, slice_of

__all__ = ["Team"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Team:
    """Decides for processes that must read the same batches, or for one that need not wait.

    Processes that disagree about what comes next would wait for one another for ever.
    """

    is_split: bool
    """Whether the launched processes hold one teacher together."""

    def shards(self, missing: list[int]) -> list[int]:
        """Return the shards to write: all for processes together, a slice for each by itself."""
        return from_main_process(missing) if self.is_split else slice_of(missing)

    def agreed(self, value: T) -> T:
        """Return what the main process says, or this one's value where each works by itself."""
        return from_main_process(value) if self.is_split else value

    def write(self, write: Callable[[], object]) -> None:
        """Write, by one process for all that hold the teacher together.

        Raises:
            StageError: the main process could not write.
        """
        if self.is_split:
            on_main_process(write)
        else:
            write()

    def requested_signal(self) -> int:
        """Return the signal that asked any of the processes to stop, or 0."""
        number = requested_signal() or 0
        return max(gathered([number])) if self.is_split else number

    def stop_if_asked(self, where: str) -> None:
        """Stop here if that was asked for, of any process.

        Raises:
            Interrupted: a stop was asked for.
        """
        stop_if_asked(where, self.requested_signal() or None)
