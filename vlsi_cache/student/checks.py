"""Whether a training can begin: what is known before the data is read, and the student's fit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from vlsi_cache.data import IndexedConversations, encoder_for, load_data
from vlsi_cache.errors import CacheError, CacheMismatchError, DataError
from vlsi_cache.matching import validate_reach
from vlsi_cache.models import (
    Backbone,
    ModelPreview,
    preview_model,
    resolve_taps,
    tokenizer_of,
    vocabulary_hash,
)
from vlsi_cache.recipe import InteractionSection, ModelSection, Recipe, validate_trackers
from vlsi_cache.store import Cache, is_begun, open_cache, validate_recorded
from vlsi_cache.student.cached_batches import CachedBatches
from vlsi_cache.training import Run, StageFolder
from vlsi_cache.verbalizer import preview_taps

__all__ = [
    "open_selecting_cache",
    "training_checks",
    "validate_contents",
    "validate_model",
    "validate_student",
]

logger = logging.getLogger(__name__)

_FIRST_SAMPLES: Final = 4
"""Samples that are compared before any stage begins. All others are when their batch comes up."""


def training_checks(recipe: Recipe) -> list[Callable[[], object]]:
    """Return the cheap checks of a training, each of which raises what is wrong."""
    return [
        lambda: _validate_cache(recipe),
        lambda: _validate_student(recipe),
        lambda: _validate_stages(recipe),
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
    _validate_vocabulary(cache, preview.name, preview.vocabulary, preview.vocab_size)
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


def open_selecting_cache(recipe: Recipe) -> Cache | None:
    """Open the cache that ``data.select`` chooses by, or return None if it is not given.

    Raises:
        CacheError: there is no cache, it is incomplete, or no sample of it could be read.
        CacheMismatchError: the cache lacks the tap.
    """
    section = recipe.data.select
    if section is None:
        return None
    path = recipe.cache_path
    if not is_begun(path):
        raise CacheError(
            "data.select chooses by the figures of a cache, and there is none",
            where=path,
            mend="Run dump-teacher first, name a cache with --cache, or leave data.select out",
        )
    cache = open_cache(path)
    missing = cache.missing_shards()
    if missing:
        raise CacheError(
            f"data.select needs a whole cache: {len(missing)} of {cache.manifest.num_shards} "
            "shards are missing",
            where=path,
            mend="Run dump-teacher again with the same settings; it goes on where it stopped",
        )
    validate_recorded(cache)
    inner = cache.manifest.taps[:-1]
    if section.tap is not None and section.tap not in inner:
        raise CacheMismatchError(
            f"data.select.tap is {section.tap}, and the cache does not hold it",
            where=path,
            expected=f"one of {', '.join(map(str, inner))}" if inner else "a cache with taps",
            found=section.tap,
            mend="Name a tap of the cache, or choose by teacher_loss or entropy",
        )
    return cache


def _can_open(recipe: Recipe) -> bool:
    """Report whether there is a cache to compare with; another check says what is wrong if not."""
    return recipe.reads_cache and is_begun(recipe.cache_path)


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


def validate_contents(cache: Cache, settings: InteractionSection) -> None:
    """Refuse a cache that lacks what stage two reads.

    Raises:
        CacheError: it is incomplete and not to be followed, or no sample of it could be read.
        CacheMismatchError: it lacks what ``tail`` reads.
    """
    if not settings.follow:
        _validate_complete(cache)
        validate_recorded(cache)
    _validate_tail(cache, settings)
    target = settings.output_target
    if target is not None and target.tap not in cache.manifest.taps[:-1]:
        raise CacheMismatchError(
            f"interaction.output_target.tap is {target.tap}, and the cache does not hold it",
            where=cache.path,
            expected=f"one of {', '.join(map(str, cache.manifest.taps[:-1]))}",
            found=target.tap,
            mend="Name a tap of the cache, or dump the teacher with it (teacher.taps)",
        )


def validate_student(run: Run, student: Backbone, cache: Cache) -> None:
    """Refuse a student that does not fit the cache.

    Raises:
        CacheMismatchError: the tokenizer differs, or the first samples give other response tokens.
        StageError: there are too few teacher taps to match.
    """
    settings = run.recipe.interaction
    validate_model(cache, student)
    _validate_taps(cache, student, run.recipe.student, settings)
    batches = CachedBatches(encoder_for(student, run.recipe.data), cache, settings.tail)
    samples = IndexedConversations(run.data)
    for index in range(min(len(cache), _FIRST_SAMPLES)):
        if index in cache and cache[index].failure is None:
            try:
                batches([samples[index]])
            except DataError:
                if not run.recipe.skips_failures:
                    raise


def validate_model(cache: Cache, model: Backbone) -> None:
    """Refuse a model of another vocabulary than the cache's.

    Raises:
        CacheMismatchError: the tokenizer differs, or the head has too few rows.
    """
    vocabulary = vocabulary_hash(tokenizer_of(model.processor))
    _validate_vocabulary(cache, model.name, vocabulary, model.vocab_size)


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


def _validate_vocabulary(cache: Cache, name: str, found: str, vocab_size: int) -> None:
    """Refuse a student of another vocabulary.

    Args:
        cache: the teacher's record.
        name: name of the student.
        found: hash of its vocabulary.
        vocab_size: size of its vocabulary, or of its head if that is smaller.

    Raises:
        CacheMismatchError: the tokenizer differs, or the head has too few rows.
    """
    identity = cache.manifest.tokenizer
    if identity.hash != found:
        raise CacheMismatchError(
            "tokenizers of teacher and student differ",
            where=name,
            expected=f"the vocabulary of {identity.name} ({identity.hash[:12]}, "
            f"{identity.vocab_size} tokens)",
            found=f"{found[:12]}, {vocab_size} tokens",
            mend="Choose a student of the teacher's family",
        )
    if vocab_size < identity.vocab_size:
        raise CacheMismatchError(
            "the student's head has fewer rows than the teacher's vocabulary",
            where=name,
            expected=f"at least {identity.vocab_size}",
            found=vocab_size,
            mend="Resize the student's embeddings to its tokenizer",
        )


def _validate_complete(cache: Cache) -> None:
    missing = cache.missing_shards()
    if missing:
        raise CacheError(
            f"cache is incomplete: {len(missing)} of {cache.manifest.num_shards} shards missing",
            where=cache.path,
            mend="Run dump-teacher again with the same settings; it goes on where it stopped. "
            "Or train while it runs, with --follow",
        )


def _validate_tail(cache: Cache, settings: InteractionSection) -> None:
    """Refuse a tail that reads entries which the record does not have."""
    sampling = cache.manifest.sampling
    if settings.tail != "sample" and not sampling.k:
        raise CacheMismatchError(
            f"interaction.tail is {settings.tail}, and the cache holds draws alone",
            where=cache.path,
            expected="the most likely tokens, k ≥ 1",
            found=f"k = 0, m = {sampling.m}",
            mend="Set interaction.tail: sample, with inner and output forward, ce or none; or "
            "dump the teacher into a new cache with cache.k: 16",
        )
