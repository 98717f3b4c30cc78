"""How many samples had a text changed, over all encoders and loader workers of a process."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from typing import Final

import torch
from accelerate.utils import gather_object
from torch import Tensor, distributed

from vlsi_cache.phases import speaks_for_all

__all__ = ["CHANGED", "ChangedSamples", "report_changed_samples", "take_changed_samples"]

logger = logging.getLogger(__name__)

_SLOTS: Final = 2**22
"""Samples share a slot by chance: of 10,000 changed samples about 12 are not counted."""


class ChangedSamples:
    """Counts samples, each once, however often an epoch brings it back."""

    def __init__(self) -> None:
        self._slots: Tensor | None = None

    def shared(self) -> Tensor:
        """The memory of the count, which forked and spawned workers write to, too."""
        if self._slots is None:
            self._slots = torch.zeros(_SLOTS, dtype=torch.bool)
            with contextlib.suppress(RuntimeError):  # no shared memory: workers do not count then
                self._slots.share_memory_()
        return self._slots

    def take(self) -> list[int]:
        """The slots of the samples so far. The count begins again."""
        if self._slots is None:
            return []
        taken: list[int] = self._slots.nonzero().flatten().tolist()
        self._slots.zero_()
        return taken

    @staticmethod
    def note(slots: Tensor, where: str) -> None:
        """Count a sample."""
        digest = hashlib.blake2b(where.encode(), digest_size=8).digest()
        slots[int.from_bytes(digest, "little") % _SLOTS] = True


CHANGED: Final = ChangedSamples()
"""The count of this process."""


def take_changed_samples() -> int:
    """The number of samples that spelt a control token. The count begins again."""
    return len(CHANGED.take())


def report_changed_samples() -> None:
    """Log how many samples spelt a control token, at the end of a command.

    All processes of a run call it together, and the first one logs the number of all.
    """
    taken = CHANGED.take()
    if distributed.is_available() and distributed.is_initialized():
        taken = gather_object(taken)
    count = len(set(taken))
    if count and speaks_for_all():
        noun = "1 sample spells" if count == 1 else f"{count:,} samples spell"
        logger.warning("%s control tokens; a space was put into each of them", noun)
