"""Whether a cache holds what a student reads, and is of its vocabulary."""

from __future__ import annotations

from pathlib import Path

from vlsi_cache.errors import CacheError, CacheMismatchError
from vlsi_cache.manifest import Sampling
from vlsi_cache.models import Backbone, tokenizer_of, vocabulary_hash
from vlsi_cache.recipe import InteractionSection
from vlsi_cache.store import Cache, validate_recorded, validate_sizes

__all__ = ["validate_contents", "validate_model", "validate_tail", "validate_vocabulary"]


def validate_contents(cache: Cache, settings: InteractionSection) -> None:
    """Refuse a cache that lacks what stage two reads.

    Raises:
        CacheError: it is incomplete and not to be followed, no sample of it could be read, or a
            shard has another size than it was written with.
        CacheMismatchError: it lacks what ``tail`` reads.
    """
    if not settings.follow:
        _validate_complete(cache)
        validate_recorded(cache)
        validate_sizes(cache.path)
    validate_tail(cache.manifest.sampling, settings, cache.path)
    if settings.hidden is not None and cache.manifest.hidden is None:
        raise CacheMismatchError(
            "interaction.hidden is given, and the cache holds no hidden state",
            where=cache.path,
            mend="Dump the teacher into a new cache with cache.hidden: {}, or leave it out "
            "(--set interaction.hidden=null)",
        )
    target = settings.output_target
    if target is not None and target.tap not in cache.manifest.taps[:-1]:
        raise CacheMismatchError(
            f"interaction.output_target.tap is {target.tap}, and the cache does not hold it",
            where=cache.path,
            expected=f"one of {', '.join(map(str, cache.manifest.taps[:-1]))}",
            found=target.tap,
            mend="Name a tap of the cache, or dump the teacher with it (teacher.taps)",
        )


def validate_model(cache: Cache, model: Backbone) -> None:
    """Refuse a model of another vocabulary than the cache's.

    Raises:
        CacheMismatchError: the tokenizer differs, or the head has too few rows.
    """
    vocabulary = vocabulary_hash(tokenizer_of(model.processor))
    validate_vocabulary(cache, model.name, vocabulary, model.vocab_size)


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


def _validate_complete(cache: Cache) -> None:
    missing = cache.missing_shards()
    if missing:
        raise CacheError(
            f"cache is incomplete: {len(missing)} of {cache.manifest.num_shards} shards missing",
            where=cache.path,
            mend="Run dump-teacher again with the same settings; it goes on where it stopped. "
            "Or train while it runs, with --follow",
        )


def validate_tail(sampling: Sampling, settings: InteractionSection, where: str | Path) -> None:
    """Refuse a tail that reads entries which the record does not have.

    Args:
        sampling: what the cache keeps of each distribution, or will keep.
        settings: the recipe's ``interaction``.
        where: the cache.

    Raises:
        CacheMismatchError: it does.
    """
    if settings.tail != "sample" and not sampling.k:
        raise CacheMismatchError(
            f"interaction.tail is {settings.tail}, and the cache holds draws alone",
            where=where,
            expected="the most likely tokens, k ≥ 1",
            found=f"k = 0, m = {sampling.m}",
            mend="Set interaction.tail: sample, with inner and output forward, ce or none; or "
            "dump the teacher into a new cache, with cache.k: 16 and cache.drawn_from: whole",
        )
