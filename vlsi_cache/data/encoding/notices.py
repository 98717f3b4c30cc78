"""Warnings that are given once, by whichever process comes first."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from typing import Final

import torch

__all__ = ["Notices"]

_SLOTS: Final = 4096


class Notices:
    """Warns once of each thing. Loader workers share what was said already.

    Args:
        logger: where the warnings go.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._said = torch.zeros(_SLOTS, dtype=torch.uint8)
        with contextlib.suppress(RuntimeError):  # no shared memory: each worker warns then
            self._said.share_memory_()

    def warn(self, topic: str, message: str, *arguments: object) -> None:
        """Log a warning unless one on the same topic was logged."""
        digest = hashlib.blake2b(topic.encode(), digest_size=8).digest()
        slot = int.from_bytes(digest, "little") % _SLOTS
        level = logging.DEBUG if self._said[slot] else logging.WARNING
        self._said[slot] = 1
        self._logger.log(level, message, *arguments)
