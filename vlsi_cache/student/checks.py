"""Whether a student fits a cache, before any stage begins."""

from __future__ import annotations

import logging
from typing import Final

from vlsi_cache.data import IndexedConversations, encoder_for
from vlsi_cache.errors import CacheMismatchError, DataError
from vlsi_cache.matching import validate_reach
from vlsi_cache.models import Backbone, resolve_taps, tokenizer_of, vocabulary_hash
from vlsi_cache.recipe import InteractionSection, ModelSection
from vlsi_cache.store import Cache
from vlsi_cache.student.cached_batches import CachedBatches
from vlsi_cache.training import Run
from vlsi_cache.training.folder import StageFolder

__all__ = [
    "validate_later_stages",
    "validate_student",
    "validate_tap_numbers",
    "validate_vocabulary",
]

logger = logging.getLogger(__name__)

_FIRST_SAMPLES: Final = 4
"""Samples that are compared before any stage begins. All others are when their batch comes up."""


def validate_student(run: Run, student: Backbone, cache: Cache) -> None:
    """Refuse a student that does not fit the cache.

    Raises:
        CacheMismatchError: the tokenizer differs, or the first samples give other response tokens.
        StageError: there are too few teacher taps to match.
    """
    settings = run.recipe.interaction
    vocabulary = vocabulary_hash(tokenizer_of(student.processor))
    validate_vocabulary(cache, student.name, vocabulary, student.vocab_size)
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


def validate_later_stages(run: Run, student: Backbone, cache: Cache) -> None:
    """Refuse folders of later stages before the first one trains, as far as is known.

    Raises:
        StageError: one holds a stage made with other settings.
    """
    recipe = run.recipe
    interaction: dict[str, object] = {
        **student.identity(),
        "cache": cache.manifest.model_dump(mode="json"),
        "interaction": recipe.interaction.decisive(),
    }
    known = [("interaction", interaction, recipe.output / "interaction" / "model")]
    if "finetuning" in recipe.stages:
        finetuning: dict[str, object] = {"finetuning": recipe.finetuning.decisive()}
        known.append(("finetuning", finetuning, recipe.student_path))
    for name, settings, result in known:
        settings = {**run.settings(), **settings}
        folder = StageFolder(recipe.output / name, settings, result / "config.json")
        folder.validate_known_settings()


def _validate_taps(
    cache: Cache, student: Backbone, section: ModelSection, settings: InteractionSection
) -> None:
    """Refuse taps that cannot be matched."""
    if settings.inner in ("ce", "none") or section.verbalizers is not None:
        return  # nothing to match, or taps that are known when the named verbalizers are loaded
    taps = resolve_taps(section.taps, student.decoder.num_blocks, where=student.name)
    validate_tap_numbers(len(taps), cache, settings)
    num_teacher = len(cache.manifest.taps) - 1
    if settings.matching.search_range and num_teacher == len(taps):
        logger.warning(
            "teacher and student have %d taps each, so each student tap can match one teacher tap "
            "only. Dump more teacher taps (teacher.taps) to let matching choose",
            num_teacher,
        )


def validate_tap_numbers(num_taps: int, cache: Cache, settings: InteractionSection) -> None:
    """Refuse more student taps than can be matched.

    Raises:
        StageError: there are too few teacher taps.
    """
    if settings.inner not in ("ce", "none"):
        validate_reach(num_taps, len(cache.manifest.taps) - 1, settings.matching)


def validate_vocabulary(cache: Cache, name: str, found: str, vocab_size: int) -> None:
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
