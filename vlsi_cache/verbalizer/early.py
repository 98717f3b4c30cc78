"""What can be said of a recipe's verbalizers before their model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from vlsi_cache.errors import ModelError
from vlsi_cache.models import ModelPreview
from vlsi_cache.recipe import Recipe
from vlsi_cache.training import StageFolder
from vlsi_cache.verbalizer.checkpoint import VERBALIZERS_FILE, read_config, validate_weights
from vlsi_cache.verbalizer.training import early_settings

__all__ = ["preview_taps"]


def preview_taps(
    recipe: Recipe, role: Literal["teacher", "student"], preview: ModelPreview
) -> tuple[int, ...] | None:
    """Return the taps that will be read, or None while the number of blocks is not known.

    Args:
        recipe: the recipe.
        role: whose taps.
        preview: the model.

    Raises:
        ModelError: taps are out of range, or named verbalizers are not there, or not the model's.
        StageError: the folder holds verbalizers made with other settings.
    """
    section = recipe.teacher if role == "teacher" else recipe.student
    if section.verbalizers is not None:
        return _taps_of(section.verbalizers, preview)
    taps = preview.resolve_taps(section.taps)
    folder = (
        recipe.teacher_verbalizers_path if role == "teacher" else recipe.student_verbalizers_path
    )
    known = {**early_settings(section), "seed": recipe.seed}
    if taps is not None:
        known["taps"] = list(taps)
    StageFolder(folder, known, folder / VERBALIZERS_FILE).validate_known_settings()
    return taps


def _taps_of(folder: Path, preview: ModelPreview) -> tuple[int, ...] | None:
    """Return the taps of named verbalizers, which must be of the model's size."""
    config = read_config(folder)
    validate_weights(folder)
    if preview.hidden_size is not None and config.hidden_size != preview.hidden_size:
        raise ModelError(
            "verbalizers belong to another backbone",
            where=folder,
            expected=f"a hidden size of {preview.hidden_size:,}",
            found=f"{config.hidden_size:,} ({config.backbone})",
            mend="Train verbalizers for this model, or name the model they were trained on",
        )
    return preview.resolve_taps(config.taps)
