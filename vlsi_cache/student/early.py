"""Whether a training can begin, by what is known before the data is read and the student loaded."""

from __future__ import annotations

from collections.abc import Callable

from vlsi_cache.models import ModelPreview, preview_model
from vlsi_cache.recipe import Recipe
from vlsi_cache.store import Cache, is_begun, open_cache
from vlsi_cache.student.checks import validate_tap_numbers, validate_vocabulary
from vlsi_cache.student.opening import validate_contents
from vlsi_cache.training.folder import StageFolder
from vlsi_cache.verbalizer import preview_taps

__all__ = ["training_checks"]


def training_checks(recipe: Recipe) -> list[Callable[[], object]]:
    """Return the cheap checks of a training, each of which raises what is wrong."""
    return [
        lambda: _validate_cache(recipe),
        lambda: _validate_student(recipe),
        lambda: _validate_stages(recipe),
    ]


def _validate_cache(recipe: Recipe) -> None:
    cache = _cache_so_far(recipe)
    if cache is not None:
        validate_contents(cache, recipe.interaction)


def _validate_student(recipe: Recipe) -> None:
    preview = preview_model(recipe.student, "student")
    if recipe.stages == ["finetuning"]:
        return
    reads_taps = "interaction" not in recipe.stages or recipe.interaction.inner != "none"
    taps = preview_taps(recipe, "student", preview) if reads_taps else ()
    cache = _cache_so_far(recipe) if _can_open(recipe) else None
    if cache is not None:
        _validate_fit(recipe, preview, taps, cache)


def _validate_fit(
    recipe: Recipe, preview: ModelPreview, taps: tuple[int, ...] | None, cache: Cache
) -> None:
    validate_vocabulary(cache, preview.name, preview.vocabulary, preview.vocab_size)
    if taps is not None:
        validate_tap_numbers(len(taps), cache, recipe.interaction)


def _cache_so_far(recipe: Recipe) -> Cache | None:
    """Open the cache of stage two, unless it is to be followed and has not begun."""
    if "interaction" not in recipe.stages:
        return None
    if recipe.interaction.follow and not is_begun(recipe.cache_path):
        return None
    return open_cache(recipe.cache_path)


def _can_open(recipe: Recipe) -> bool:
    """Report whether there is a cache to compare with; another check says what is wrong if not."""
    return "interaction" in recipe.stages and is_begun(recipe.cache_path)


def _validate_stages(recipe: Recipe) -> None:
    """Refuse folders of stages two and three that were made with other settings."""
    stages = {
        "interaction": (recipe.interaction, recipe.output / "interaction" / "model"),
        "finetuning": (recipe.finetuning, recipe.student_path),
    }
    for name, (section, result) in stages.items():
        if name in recipe.stages:
            known = {name: section.decisive(), "seed": recipe.seed}
            folder = StageFolder(recipe.output / name, known, result / "config.json")
            folder.validate_known_settings()
