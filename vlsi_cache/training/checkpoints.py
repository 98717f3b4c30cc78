"""Checkpoints of a stage, and the ordinary checkpoint that comes out of it."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from vlsi_cache.models import load_processor_of
from vlsi_cache.recipe import ModelSection
from vlsi_cache.training.processes import on_main_process

__all__ = ["discard_checkpoints", "last_checkpoint", "save_model"]

logger = logging.getLogger(__name__)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint of the latest step, if there is one; torn ones are removed."""
    on_main_process(lambda: _remove_torn(folder))
    found = folder.glob("checkpoint-*")
    return max(found, key=lambda path: int(path.name.split("-")[-1]), default=None)


def discard_checkpoints(folder: Path) -> None:
    """Free the space of a finished stage's checkpoints."""

    def remove() -> None:
        for path in folder.glob("checkpoint-*"):
            shutil.rmtree(path, ignore_errors=True)  # a finished run's folder may be read-only

    on_main_process(remove)


def save_model(model: Any, source: ModelSection, folder: Path) -> None:
    """Write a model and its processor as an ordinary checkpoint, by one process for all.

    Everything is written beside ``folder`` and moved there at the end, so that a folder that
    appears is whole.

    Args:
        model: the model to save.
        source: names its processor, which is loaded again. One that was used would save how it
            padded.
        folder: where the checkpoint goes; files of the same names are replaced.
    """

    def write() -> None:
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # an interrupted run may have left it
        model.save_pretrained(partial)
        load_processor_of(source).save_pretrained(partial)
        if not folder.exists():
            partial.rename(folder)
            return
        for stale in folder.glob("*.safetensors*"):
            stale.unlink()  # shards of another number would be loaded with the new ones
        for file in [path for path in partial.rglob("*") if path.is_file()]:
            target = folder / file.relative_to(partial)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
        shutil.rmtree(partial)

    on_main_process(write)


def _remove_torn(folder: Path) -> None:
    """Remove the checkpoints whose last file is not whole."""
    for path in folder.glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            logger.warning("removing %s: an interruption left it incomplete", path)
            shutil.rmtree(path)
