"""Ordinary checkpoints: a model and its processor in a folder that ``from_pretrained`` loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlsi_cache.models import load_processor
from vlsi_cache.training.processes import on_main_process

__all__ = ["save_checkpoint"]


def save_checkpoint(model: Any, source: str, folder: Path) -> None:
    """Write an ordinary checkpoint, by one process for all.

    Args:
        model: what is saved.
        source: whose processor is saved beside it: anew, since one that was used remembers how.
        folder: where to.
    """

    def write() -> None:
        model.save_pretrained(folder)
        load_processor(source).save_pretrained(folder)

    on_main_process(write)
