"""Whether the stages' folders fit the run that is about to begin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlsi_cache.errors import StageError
from vlsi_cache.recipe import Recipe
from vlsi_cache.training import StageFolder
from vlsi_cache.verbalizer import EXITS_FOLDER, VERBALIZERS_FILE

__all__ = ["validate_later_stages", "validate_stage_settings", "validate_untouched_start"]


def validate_stage_settings(recipe: Recipe) -> None:
    """Refuse folders of stages two and three that were made with other settings.

    Raises:
        StageError: the settings differ; each difference is named.
    """
    sections = {"interaction": recipe.interaction, "finetuning": recipe.finetuning}
    for name, section in sections.items():
        if name in recipe.stages:
            known = {name: section.decisive(), "seed": recipe.seed}
            _folders(recipe, known)[name].validate_known_settings()


def validate_untouched_start(recipe: Recipe) -> None:
    """Refuse fine-tuning alone where it would write the untouched student over a distilled one.

    Raises:
        StageError: the output folder holds a student of stage two.
    """
    if "finetuning" not in recipe.stages or "interaction" in recipe.stages:
        return
    folders = _folders(recipe)
    distilled = folders["interaction"].config.parent
    if Path(recipe.student.model or "").resolve() == distilled.resolve():
        return  # it is named as the student to begin with
    if folders["interaction"].holds_training:
        mend = (
            "Give --stages verbalization,interaction,finetuning to go on from it: finished stages "
            "are skipped. Or choose another --output"
        )
    elif not folders["finetuning"].holds_training and _has_exits_of_its_own(recipe):
        mend = f"Choose another --output, or delete {recipe.student_path}"
    else:
        return
    raise StageError(
        "this folder holds a distilled student, and fine-tuning alone would begin with the "
        "untouched one and write over it",
        where=recipe.output,
        mend=mend,
    )


def _has_exits_of_its_own(recipe: Recipe) -> bool:
    """Report whether the finished student has exits that the untouched one does not."""
    exits = Path(EXITS_FOLDER, VERBALIZERS_FILE)
    untouched = Path(recipe.student.model or "")
    return (recipe.student_path / exits).is_file() and not (untouched / exits).is_file()


def validate_later_stages(recipe: Recipe) -> None:
    """Refuse to train a stage while a later one holds what was made from another training of it.

    The later one would be refused as well, but only after hours of training.

    Raises:
        StageError: a later stage's folder is there; all of them are named.
    """
    folders = _folders(recipe)
    section = recipe.student
    if recipe.interaction.inner == "none" or section.verbalizers or not section.verbalizer.trains:
        del folders["verbalization"]  # it trains nothing that later stages build on
    names = [name for name in folders if name in recipe.stages]
    for position, name in enumerate(names):
        if folders[name].is_finished:
            continue
        later = [folders[other] for other in names[position + 1 :]]
        stale = " and ".join(str(folder.path) for folder in later if folder.holds_training)
        if stale:
            raise StageError(
                f"{name} is not finished here, but a stage that builds on it has begun",
                where=folders[name].path,
                found=stale,
                mend=f"Delete {stale} and run the same command again, or choose another --output",
            )


def _folders(recipe: Recipe, settings: dict[str, Any] | None = None) -> dict[str, StageFolder]:
    """Return the folder of each stage, in order."""
    paths = recipe.student_folders
    configs = {
        "verbalization": paths["verbalization"] / VERBALIZERS_FILE,
        "interaction": paths["interaction"] / "model" / "config.json",
        "finetuning": recipe.student_path / "config.json",
    }
    return {name: StageFolder(path, settings or {}, configs[name]) for name, path in paths.items()}
