"""Other libraries' progress bars, hidden while phases report the progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging

__all__ = ["without_other_bars"]


@contextmanager
def without_other_bars() -> Iterator[None]:
    """Hide the progress bars of transformers, and show them again afterwards if they were shown."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
