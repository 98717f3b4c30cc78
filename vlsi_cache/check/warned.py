"""What the log warns of during a check, for its report."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from vlsi_cache.errors import printable

__all__ = ["collected_warnings"]

_PACKAGE: Final = "vlsi_cache"


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Yield a list that fills with the package's warnings, each once, in their order."""
    keeper = _Keeper()
    logger = logging.getLogger(_PACKAGE)
    logger.addHandler(keeper)
    try:
        yield keeper.kept
    finally:
        logger.removeHandler(keeper)


class _Keeper(logging.Handler):
    """Keeps the texts of warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.kept: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = printable(record.getMessage())
        if text not in self.kept:
            self.kept.append(text)
