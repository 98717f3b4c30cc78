"""The exits of a student: its verbalizers, kept in a folder inside the student's own."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Final

from transformers import PreTrainedModel

from vlsi_cache.models import Backbone, weights_fingerprint
from vlsi_cache.training.folders.writing import plain_write_errors
from vlsi_cache.verbalizer.bank import VerbalizerBank
from vlsi_cache.verbalizer.checkpoint import (
    OWNER,
    VERBALIZERS_FILE,
    WEIGHTS_FILE,
    read_config,
    save_verbalizers,
    write_config,
)

__all__ = ["EXITS_FOLDER", "carry_exits", "keep_exits"]

logger = logging.getLogger(__name__)

EXITS_FOLDER: Final = "exits"


def keep_exits(
    bank: VerbalizerBank,
    backbone: Backbone,
    model: PreTrainedModel,
    folder: Path,
    *,
    rested: bool = False,
) -> None:
    """Save the verbalizers that trained with a student, inside the student's folder.

    Args:
        bank: the verbalizers. Without taps there are no exits, and those of before go.
        backbone: the student as it began.
        model: the student as it was saved.
        folder: where it was saved.
        rested: whether they did not train to the end, so that they are older than the student.

    Raises:
        StageError: a file cannot be written.
    """
    exits = folder / EXITS_FOLDER
    with plain_write_errors(exits):
        _clear(exits)
        if bank.taps:
            now = replace(backbone, name=OWNER, fingerprint=weights_fingerprint(model))
            save_verbalizers(bank, exits, now)
            if rested and bank.settings.trains:
                write_config(read_config(exits).model_copy(update={"stale": True}), exits)


def carry_exits(source: Path, fingerprint: str, model: PreTrainedModel, folder: Path) -> None:
    """Take the exits of a student along, once it was trained on without them.

    Those with weights are then older than the student, which they say of themselves.

    Args:
        source: the student's folder from before.
        fingerprint: the student's ``weights_fingerprint`` then.
        model: the student as it was saved.
        folder: where it was saved.

    Raises:
        ModelError: the exits are damaged.
        StageError: a file cannot be written.
    """
    old, new = source / EXITS_FOLDER, folder / EXITS_FOLDER
    with plain_write_errors(new):
        _clear(new)
        if not (old / VERBALIZERS_FILE).is_file():
            return
        config = read_config(old)
        if config.backbone_fingerprint != fingerprint:
            logger.warning("%s: exits of another model, which are not taken along", old)
            return
        now = {"backbone": OWNER, "backbone_fingerprint": weights_fingerprint(model)}
        stale = config.verbalizer.trains
        new.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(old / WEIGHTS_FILE, new / WEIGHTS_FILE)
        write_config(config.model_copy(update={**now, "stale": stale}), new)
    if stale:
        logger.info(
            "%s: the exits were trained before the fine-tuning. Whoever wants exits renews them by "
            "--stages verbalization (docs/exits.md)",
            new,
        )


def _clear(exits: Path) -> None:
    """Remove the exits of before: the config first, without which a folder holds none."""
    (exits / VERBALIZERS_FILE).unlink(missing_ok=True)
    (exits / WEIGHTS_FILE).unlink(missing_ok=True)
    if exits.is_dir() and not any(exits.iterdir()):
        exits.rmdir()
