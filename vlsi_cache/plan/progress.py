"""What of a run is done already, by its folders."""

from __future__ import annotations

from pathlib import Path

from vlsi_cache.plan.rehearsing.steps import PlannedStageName
from vlsi_cache.recipe import Recipe
from vlsi_cache.stagefiles import StageRecord
from vlsi_cache.store import Cache, is_begun, open_cache

__all__ = ["is_finished", "num_recorded", "opened_cache", "stages_of"]


def stages_of(recipe: Recipe) -> list[PlannedStageName]:
    """Return the stages that the recipe's commands run, in order. Those that are done count too."""
    found: list[PlannedStageName] = []
    if recipe.teacher.model is not None:
        if recipe.teacher.verbalizers is None and recipe.teacher.verbalizer.trains:
            found.append("teacher-verbalization")
        found.append("teacher-pass")
    if recipe.student.model is not None:
        reads_taps = "interaction" not in recipe.stages or recipe.interaction.inner != "none"
        trains = "verbalization" in recipe.stages and recipe.student.verbalizers is None
        if trains and reads_taps and recipe.student.verbalizer.trains:
            found.append("student-verbalization")
        if "interaction" in recipe.stages:
            found.append("interaction")
        if "finetuning" in recipe.stages:
            found.append("finetuning")
    return found


def opened_cache(recipe: Recipe) -> Cache | None:
    """Open the recipe's cache, if it has begun.

    Raises:
        CacheError: it is damaged.
    """
    return open_cache(recipe.cache_path) if is_begun(recipe.cache_path) else None


def num_recorded(cache: Cache | None) -> int:
    """Return the number of samples whose shards are there."""
    if cache is None:
        return 0
    missing = sum(len(cache.manifest.shard_range(shard)) for shard in cache.missing_shards())
    return len(cache) - missing


def is_finished(recipe: Recipe, stage: PlannedStageName, cache: Cache | None) -> bool:
    """Report whether the output folder holds a stage's result."""
    if stage == "teacher-pass":
        return cache is not None and cache.is_complete
    folder = {
        "teacher-verbalization": recipe.teacher_verbalizers_path,
        "student-verbalization": recipe.student_verbalizers_path,
        "interaction": recipe.output / "interaction",
        "finetuning": recipe.output / "finetuning",
    }[stage]
    return _says_finished(folder / "stage.json")


def _says_finished(path: Path) -> bool:
    try:
        return StageRecord.model_validate_json(path.read_bytes()).finished
    except (OSError, ValueError):
        return False
