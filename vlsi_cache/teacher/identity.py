"""What a cache is begun with: its manifest, from the recipe, the data and the teacher."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from accelerate import PartialState

from vlsi_cache.errors import RecipeError
from vlsi_cache.manifest import (
    MAX_POOL,
    MAX_TOP,
    OUTPUT_TAP,
    CacheManifest,
    DatasetIdentity,
    Sampling,
    TeacherIdentity,
    TokenizerIdentity,
)
from vlsi_cache.models import Backbone, chat_template_hash, tokenizer_of, vocabulary_hash
from vlsi_cache.sampling import TapRecorder
from vlsi_cache.store import CacheWriter, create_cache, validate_beginnable
from vlsi_cache.teacher.reading import TeacherPass
from vlsi_cache.training import Run
from vlsi_cache.verbalizer import VerbalizerBank, verbalizers_fingerprint

__all__ = ["begin_dump", "validate_cache_folder"]


def validate_cache_folder(run: Run) -> None:
    """Refuse the cache's folder before the verbalizers train, not after.

    Raises:
        CacheMismatchError: the cache there was begun with other settings.
        CacheError: the folder holds something else, or cannot be used.
    """
    recipe = run.recipe
    known: dict[str, object] = {
        "dataset": _dataset_identity(run),
        "sampling": _sampling(run),
        "samples_per_shard": recipe.cache.samples_per_shard,
        "batch_size": recipe.cache.batch_size,
    }
    if recipe.teacher.taps is not None:
        known["taps"] = (*sorted(recipe.teacher.taps), OUTPUT_TAP)
    validate_beginnable(recipe.cache_path, known)


def begin_dump(
    run: Run, teacher: Backbone, bank: VerbalizerBank, processor: Path
) -> tuple[TeacherPass, CacheWriter]:
    """Begin the recipe's cache, or go on with it.

    Args:
        run: the recipe and its data.
        teacher: the model.
        bank: its verbalizers.
        processor: folder of the teacher's processor, as it was before its use.

    Returns:
        What reads the teacher, and what writes the shards.

    Raises:
        RecipeError: ``cache.k`` or ``cache.m`` is too large.
        CacheMismatchError: the cache there was begun with other settings.
    """
    settings = run.recipe.cache
    _validate_entries(run, teacher, num_taps=len(bank.taps) + 1)
    manifest = _manifest(run, teacher, bank)
    recorder = TapRecorder(teacher.head, k=settings.k, m=settings.m)
    with PartialState().main_process_first():  # only one may publish the processor
        writer = create_cache(run.recipe.cache_path, manifest, processor)
    return TeacherPass(teacher, bank, recorder, run.recipe.seed), writer


def _validate_entries(run: Run, teacher: Backbone, num_taps: int) -> None:
    """Refuse more entries per token than the vocabulary or the format has room for."""
    k = run.recipe.cache.k
    m = run.recipe.cache.m
    if k + m > teacher.vocab_size:
        raise RecipeError(
            "cache.k + cache.m is larger than the vocabulary",
            where=teacher.name,
            expected=f"at most {teacher.vocab_size}",
            found=f"{k} + {m}",
            mend="Lower cache.k or cache.m",
        )
    for name, each, most in (("m", m, MAX_POOL), ("k", k, MAX_TOP)):
        if each * num_taps > most:
            raise RecipeError(
                "more entries per token, at all taps together, than the format holds",
                where=teacher.name,
                expected=f"at most {most}",
                found=f"cache.{name} {each} at {num_taps} taps",
                mend=f"Lower cache.{name}, or name fewer teacher.taps",
            )


def _manifest(run: Run, teacher: Backbone, bank: VerbalizerBank) -> CacheManifest:
    model = teacher.decoder.model
    return CacheManifest(
        vlsi_cache_version=version("vlsi-cache"),
        teacher=TeacherIdentity(
            name=teacher.name,
            model_type=model.config.model_type,
            weights_fingerprint=teacher.fingerprint,
        ),
        verbalizers_fingerprint=verbalizers_fingerprint(bank),
        tokenizer=TokenizerIdentity(
            name=teacher.name,
            hash=vocabulary_hash(tokenizer_of(teacher.processor)),
            vocab_size=teacher.vocab_size,
        ),
        chat_template_hash=chat_template_hash(teacher.processor),
        dataset=_dataset_identity(run),
        taps=(*bank.taps, OUTPUT_TAP),
        sampling=_sampling(run),
        samples_per_shard=run.recipe.cache.samples_per_shard,
        batch_size=run.recipe.cache.batch_size,
        dtype=str(model.dtype).removeprefix("torch."),
    )


def _sampling(run: Run) -> Sampling:
    return Sampling(k=run.recipe.cache.k, m=run.recipe.cache.m, seed=run.recipe.seed)


def _dataset_identity(run: Run) -> DatasetIdentity:
    return DatasetIdentity(
        source=run.data.source, fingerprint=run.fingerprint(), num_samples=len(run.data)
    )
