"""Whether a training can begin: what is known before the data is read, and the student's fit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from vlsi_cache.data import IndexedConversations, encoder_for, load_data
from vlsi_cache.errors import CacheError, DataError
from vlsi_cache.matching import validate_reach
from vlsi_cache.models import Backbone, ModelPreview, preview_model, resolve_taps
from vlsi_cache.recipe import InteractionSection, ModelSection, Recipe, validate_trackers
from vlsi_cache.store import Cache, is_begun, open_cache
from vlsi_cache.student.cached import (
    CachedBatches,
    validate_contents,
    validate_model,
    validate_vocabulary,
)
from vlsi_cache.student.choosing import open_selecting_cache
from vlsi_cache.student.folders import (
    validate_later_stages,
    validate_stage_settings,
    validate_untouched_start,
)
from vlsi_cache.student.hidden_state import validate_hidden
from vlsi_cache.training import Run
from vlsi_cache.training.loading import preview_savable
from vlsi_cache.verbalizer import preview_taps

__all__ = ["training_checks", "validate_student"]

logger = logging.getLogger(__name__)

_FIRST_SAMPLES: Final = 4
"""Samples that are compared before any stage begins. All others are when their batch comes up."""


def training_checks(recipe: Recipe) -> list[Callable[[], object]]:
    """Return the cheap checks of a training, each of which raises what is wrong."""
    return [
        lambda: _validate_cache(recipe),
        lambda: _validate_student(recipe),
        lambda: validate_untouched_start(recipe),
        lambda: validate_later_stages(recipe),
        lambda: validate_stage_settings(recipe),
        lambda: validate_trackers(recipe),
        lambda: _validate_held_out(recipe),
    ]


def _validate_held_out(recipe: Recipe) -> None:
    """Refuse held-out data that is not there, or whose record cannot be opened."""
    settings = recipe.held_out
    if settings.is_other_data:
        load_data(settings.section_of(recipe.data))
    if settings.cache is not None:
        open_cache(settings.cache)


def _validate_cache(recipe: Recipe) -> None:
    cache = open_selecting_cache(recipe) or _cache_so_far(recipe)
    if cache is not None and recipe.reads_cache:
        validate_contents(cache, recipe.interaction)


def _validate_student(recipe: Recipe) -> None:
    preview = preview_model(recipe.student, "student")
    preview_savable(recipe.student)
    taps: tuple[int, ...] | None = None
    if recipe.stages != ["finetuning"]:
        reads_taps = "interaction" not in recipe.stages or recipe.interaction.inner != "none"
        taps = preview_taps(recipe, "student", preview) if reads_taps else ()
    cache = _cache_so_far(recipe) if _can_open(recipe) else None
    if cache is not None:
        _validate_fit(recipe, preview, taps, cache)


def _validate_fit(
    recipe: Recipe, preview: ModelPreview, taps: tuple[int, ...] | None, cache: Cache
) -> None:
    validate_vocabulary(cache, preview.name, preview.vocabulary, preview.vocab_size)
    if "interaction" in recipe.stages:
        validate_hidden(cache, recipe.interaction, preview.num_blocks, preview.hidden_size)
    if taps is not None:
        _validate_tap_numbers(len(taps), cache, recipe.interaction)


def _cache_so_far(recipe: Recipe) -> Cache | None:
    """Open the cache of stage two, unless it is to be followed and has not begun."""
    if not recipe.reads_cache:
        return None
    if recipe.interaction.follow and not is_begun(recipe.cache_path):
        return None
    if "interaction" not in recipe.stages and not is_begun(recipe.cache_path):
        raise CacheError(
            "there is no cache. With finetuning.record_weight above 0, stage three learns the "
            "teacher's record beside the labels",
            where=recipe.cache_path,
            mend="Name the cache (--cache), dump the teacher first, or set "
            "finetuning.record_weight: 0 to learn labels alone",
        )
    return open_cache(recipe.cache_path)


def _can_open(recipe: Recipe) -> bool:
    """Report whether there is a cache to compare with; another check says what is wrong if not."""
    return recipe.reads_cache and is_begun(recipe.cache_path)


def validate_student(run: Run, student: Backbone, cache: Cache) -> None:
    """Refuse a student that does not fit the cache.

    Raises:
        CacheMismatchError: the tokenizer differs, or the first samples give other response tokens.
        StageError: there are too few teacher taps to match.
    """
    settings = run.recipe.interaction
    validate_model(cache, student)
    _validate_taps(cache, student, run.recipe.student, settings)
    decoder = student.decoder
    validate_hidden(cache, settings, decoder.num_blocks, decoder.hidden_size)
    if cache.manifest.hidden is not None and settings.hidden is None:
        logger.info(
            "the cache holds a hidden state, which is not learned: interaction.hidden is null"
        )
    batches = CachedBatches(encoder_for(student, run.recipe.data), cache, settings.tail)
    samples = IndexedConversations(run.data)
    for index in range(min(len(cache), _FIRST_SAMPLES)):
        if index in cache and cache[index].failure is None:
            try:
                batches([samples[index]])
            except DataError:
                if not run.recipe.skips_failures:
                    raise


def _validate_taps(
    cache: Cache, student: Backbone, section: ModelSection, settings: InteractionSection
) -> None:
    """Refuse taps that cannot be matched."""
    if not settings.matches_taps or section.verbalizers is not None:
        return  # nothing to match, or taps that are known when the named verbalizers are loaded
    taps = resolve_taps(section.taps, student.decoder.num_blocks, where=student.name)
    _validate_tap_numbers(len(taps), cache, settings)
    num_teacher = len(cache.manifest.taps) - 1
    if settings.matching.search_range and num_teacher == len(taps):
        logger.warning(
            "teacher and student have %d taps each, so each student tap can match one teacher tap "
            "only. Dump more teacher taps (teacher.taps) to let matching choose",
            num_teacher,
        )


def _validate_tap_numbers(num_taps: int, cache: Cache, settings: InteractionSection) -> None:
    """Refuse more student taps than can be matched.

    Raises:
        StageError: there are too few teacher taps.
    """
    if settings.matches_taps:
        validate_reach(num_taps, len(cache.manifest.taps) - 1, settings.matching)
