"""``train-student``: verbalization, interaction and fine-tuning, without the teacher."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig, TrainerCallback

from vlsi_cache.data import ConversationDataset, IndexedConversations, encoder_for, load_data
from vlsi_cache.errors import CacheError, CacheMismatchError
from vlsi_cache.matching import validate_reach
from vlsi_cache.models import Backbone, load_backbone, resolve_taps, tokenizer_of, vocabulary_hash
from vlsi_cache.recipe import Recipe, idle_settings
from vlsi_cache.store import Cache, open_cache
from vlsi_cache.student.arrivals import begun_cache
from vlsi_cache.student.cached_batches import CachedBatches
from vlsi_cache.student.finetuning import finetune
from vlsi_cache.student.interaction import interact
from vlsi_cache.training.precision import frozen_dtype, trained_dtype, uses_autocast
from vlsi_cache.training.processes import resolve_device
from vlsi_cache.verbalizer import build_verbalizers, verbalizers_fingerprint
from vlsi_cache.verbalizer.training import obtain_verbalizers

__all__ = ["train_student"]

logger = logging.getLogger(__name__)

_FIRST_SAMPLES: Final = 4
"""Looked at before any stage begins; all others are when their batch comes up."""


def train_student(recipe: Recipe, callbacks: Sequence[TrainerCallback] = ()) -> Path:
    """Run the recipe's stages on the student; each resumes, and is skipped when done.

    Args:
        recipe: ``student``, ``data``, ``cache`` and the stages' sections are read.
        callbacks: of the ``transformers`` Trainer, in interaction and fine-tuning; their ``model``
            has the student's parts as ``decoder``.

    Returns:
        Folder of the last stage's student: an ordinary checkpoint with its processor, or the
        folder of its verbalizers if that stage alone was asked for.

    Raises:
        VlsiCacheError: whatever the user can mend; see the exception tree.
    """
    for idle in idle_settings(recipe, "student"):
        logger.warning("%s", idle)
    device = resolve_device(recipe.device)
    dataset = load_data(recipe.data)
    dataset.validate()
    settings: dict[str, Any] = {
        "data": dataset.fingerprint(),
        "max_length": recipe.data.max_length,
        "seed": recipe.seed,
    }
    result, section = recipe.student_verbalizers_path, recipe.student
    if "interaction" in recipe.stages or "verbalization" in recipe.stages:
        result = _distil(recipe, dataset, device, settings, callbacks)
        gc.collect()  # the adapted student's hooks and modules refer to one another
    if "finetuning" not in recipe.stages:
        return result
    if "interaction" in recipe.stages:
        section = section.model_copy(update={"model": str(result)})
    student = load_backbone(section, "student", device, trained_dtype(section.dtype))
    return finetune(
        student,
        IndexedConversations(dataset),
        recipe,
        recipe.output / "finetuning",
        original=AutoConfig.from_pretrained(str(recipe.student.model)),
        inherited={**settings, **student.identity()},
        autocast=uses_autocast(section.dtype, device),
        callbacks=callbacks,
    )


def _distil(
    recipe: Recipe,
    dataset: ConversationDataset,
    device: torch.device,
    settings: dict[str, Any],
    callbacks: Sequence[TrainerCallback],
) -> Path:
    """Verbalization, then interaction if asked for."""
    cache = None
    if "interaction" in recipe.stages:
        cache = _open_cache(recipe)
        _prove_made_for(cache, dataset)
        if not recipe.interaction.follow:
            _prove_complete(cache)
    section = recipe.student
    dtype = frozen_dtype(section.dtype, device)
    if recipe.interaction.lora is None:  # also where stage one runs apart: it is held alike
        dtype = trained_dtype(section.dtype)
    student = load_backbone(section, "student", device, dtype)
    if cache is not None:
        _prove_same_tokenizer(cache, student)
        _prove_tail(cache, recipe)
        _prove_room(cache, student, recipe)
        _prove_first_samples(cache, student, dataset, recipe)
    folder = recipe.student_verbalizers_path
    autocast = uses_autocast(section.dtype, device)
    if cache is not None and recipe.interaction.inner == "none":
        bank = build_verbalizers(student.decoder, (), section.verbalizer, seed=recipe.seed)
    else:
        bank = obtain_verbalizers(
            student, section, dataset, recipe.data, folder, seed=recipe.seed, autocast=autocast
        )
    if cache is None:
        return folder
    return interact(
        student,
        bank,
        cache,
        IndexedConversations(dataset),
        recipe,
        recipe.output / "interaction",
        inherited={
            **settings,
            **student.identity(),
            "verbalizers": verbalizers_fingerprint(bank),
            "cache": cache.manifest.model_dump(mode="json"),
        },
        autocast=autocast,
        callbacks=callbacks,
    )


def _open_cache(recipe: Recipe) -> Cache:
    """The recipe's cache; one that is to be followed may have to begin first."""
    settings = recipe.interaction
    if settings.follow:
        return begun_cache(recipe.cache_path, settings.follow_timeout_seconds)
    return open_cache(recipe.cache_path)


def _prove_first_samples(
    cache: Cache, student: Backbone, dataset: ConversationDataset, recipe: Recipe
) -> None:
    """Refuse a student whose template gives other tokens, as its first samples tell."""
    batches = CachedBatches(
        encoder_for(student, recipe.data), recipe.cache_path, recipe.interaction.tail
    )
    encoded = IndexedConversations(dataset)
    for index in range(min(len(cache), _FIRST_SAMPLES)):
        if index in cache and cache[index].failure is None:
            batches([encoded[index]])


def _prove_made_for(cache: Cache, dataset: ConversationDataset) -> None:
    """Refuse a cache that was made for other data."""
    identity = cache.manifest.dataset
    if identity.fingerprint != dataset.fingerprint():
        raise CacheMismatchError(
            "cache was made for other data",
            where=cache.path,
            expected=f"{identity.num_samples} samples of {identity.source} "
            f"({identity.fingerprint[:12]})",
            found=f"{len(dataset)} samples of {dataset.source} ({dataset.fingerprint()[:12]})",
            mend="Give the data (and data.limit) that was dumped, or dump the teacher again",
        )


def _prove_complete(cache: Cache) -> None:
    """Refuse a cache that is not to be had whole."""
    missing = cache.missing_shards()
    if missing:
        raise CacheError(
            f"cache is incomplete: {len(missing)} of {cache.manifest.num_shards} shards missing",
            where=cache.path,
            mend="Run dump-teacher again with the same settings; it goes on where it stopped. "
            "Or train while it runs, with --follow",
        )


def _prove_tail(cache: Cache, recipe: Recipe) -> None:
    """Refuse a reading of the record that it has not the entries for."""
    tail, sampling = recipe.interaction.tail, cache.manifest.sampling
    if tail != "sample" and not sampling.k:
        raise CacheMismatchError(
            f"interaction.tail is {tail}, and the cache holds draws alone",
            where=cache.path,
            expected="the most likely tokens, k ≥ 1",
            found=f"k = 0, m = {sampling.m}",
            mend="Set interaction.tail: sample, with inner and output forward, ce or none; or "
            "dump the teacher into a new cache with cache.k: 16",
        )
    if tail == "sample" and not sampling.m:
        logger.warning(
            "the cache holds the %d most likely tokens and no draws; scaled to sum to 1 they are "
            "a biased target",
            sampling.k,
        )


def _prove_room(cache: Cache, student: Backbone, recipe: Recipe) -> None:
    """Refuse taps that cannot be matched, before any stage begins."""
    section, settings = recipe.student, recipe.interaction
    if settings.inner in ("ce", "none") or section.verbalizers is not None:
        return  # nothing to match; or the named verbalizers' own taps, known when they are loaded
    taps = resolve_taps(section.taps, student.decoder.num_blocks, where=student.name)
    num_teacher = len(cache.manifest.taps) - 1
    validate_reach(len(taps), num_teacher, settings.matching)
    if settings.matching.search_range and num_teacher == len(taps):
        logger.warning(
            "teacher and student have %d taps each, so each student tap can meet one teacher tap "
            "only; dump more teacher taps (teacher.taps) to let matching choose",
            num_teacher,
        )


def _prove_same_tokenizer(cache: Cache, student: Backbone) -> None:
    found = vocabulary_hash(tokenizer_of(student.processor))
    identity = cache.manifest.tokenizer
    if identity.hash != found:
        raise CacheMismatchError(
            "tokenizers of teacher and student differ",
            where=student.name,
            expected=f"the vocabulary of {identity.name} ({identity.hash[:12]}, "
            f"{identity.vocab_size} tokens)",
            found=f"{found[:12]}, {student.vocab_size} tokens",
            mend="Choose a student of the teacher's family",
        )
    if student.vocab_size < identity.vocab_size:
        raise CacheMismatchError(
            "the student's head has fewer rows than the teacher's vocabulary",
            where=student.name,
            expected=f"at least {identity.vocab_size}",
            found=student.vocab_size,
            mend="Resize the student's embeddings to its tokenizer",
        )
