"""What can be said of a recipe's verbalizers before their model is loaded."""

from __future__ import annotations

from typing import Literal

from vlsi_cache.models import ModelPreview
from vlsi_cache.recipe import Recipe
from vlsi_cache.training import StageFolder
from vlsi_cache.verbalizer.checkpoint import VERBALIZERS_FILE, read_config
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
        ModelError: taps are out of range, or named verbalizers are not there.
        StageError: the folder holds verbalizers made with other settings.
    """
    section = recipe.teacher if role == "teacher" else recipe.student
    if section.verbalizers is not None:
        return preview.resolve_taps(read_config(section.verbalizers).taps)
    taps = preview.resolve_taps(section.taps)
    folder = (
        recipe.teacher_verbalizers_path if role == "teacher" else recipe.student_verbalizers_path
    )
    known = {**early_settings(section), "seed": recipe.seed}
    if taps is not None:
        known["taps"] = list(taps)
    StageFolder(folder, known, folder / VERBALIZERS_FILE).validate_known_settings()
    return taps
