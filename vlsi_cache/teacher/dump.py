"""``dump-teacher``: verbalize the teacher, then fill its cache."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from vlsi_cache.data import ConversationDataset, TokenBatches, encoder_for, load_data
from vlsi_cache.errors import RecipeError, StageError
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
from vlsi_cache.models import (
    Backbone,
    chat_template_hash,
    load_backbone,
    tokenizer_of,
    vocabulary_hash,
)
from vlsi_cache.recipe import Recipe, idle_settings
from vlsi_cache.sampling import TapRecorder
from vlsi_cache.store import CacheWriter, create_cache, prove_beginnable
from vlsi_cache.teacher.failures import Failures
from vlsi_cache.teacher.partition import Partition
from vlsi_cache.teacher.reading import DumpProgress, TeacherPass, fill_cache
from vlsi_cache.training.precision import frozen_dtype, uses_autocast
from vlsi_cache.training.processes import on_main_process, resolve_device, wait_for_everyone
from vlsi_cache.verbalizer import VerbalizerBank, verbalizers_fingerprint
from vlsi_cache.verbalizer.training import obtain_verbalizers

__all__ = ["dump_teacher"]

logger = logging.getLogger(__name__)


def dump_teacher(
    recipe: Recipe,
    on_progress: Callable[[DumpProgress], None] | None = None,
    partition: Partition | None = None,
) -> str | Path:
    """Write the teacher's record of the recipe's data; resumes at shard granularity.

    Under ``accelerate launch`` the processes share the missing shards among them.

    Args:
        recipe: ``teacher``, ``data`` and ``cache`` are read.
        on_progress: called after each batch.
        partition: this job's share of the shards, where other jobs write the others.

    Returns:
        Folder or URL of the cache; without a partition it is complete.

    Raises:
        VlsiCacheError: whatever the user can mend; see the exception tree.
    """
    for idle in idle_settings(recipe, "teacher"):
        logger.warning("%s", idle)
    device = resolve_device(recipe.device)
    dataset = load_data(recipe.data)
    dataset.validate()
    _prove_beginnable(recipe, dataset)
    teacher = load_backbone(
        recipe.teacher, "teacher", device, frozen_dtype(recipe.teacher.dtype, device)
    )
    with tempfile.TemporaryDirectory() as processor:
        # before it is used: a tokenizer remembers how it padded, and would be saved otherwise
        teacher.processor.save_pretrained(processor)
        bank = obtain_verbalizers(
            teacher,
            recipe.teacher,
            dataset,
            recipe.data,
            recipe.teacher_verbalizers_path,
            seed=recipe.seed,
            autocast=uses_autocast(recipe.teacher.dtype, device),
        )
        recorder = _recorder(recipe, teacher, bank)
        manifest = _manifest(recipe, teacher, bank, dataset)
        on_main_process(lambda: create_cache(recipe.cache_path, manifest, Path(processor)))
    writer, cache = create_cache(recipe.cache_path, manifest), recipe.cache
    fill_cache(
        TeacherPass(teacher, bank, recorder, recipe.seed),
        dataset,
        TokenBatches(encoder_for(teacher, recipe.data)),
        writer,
        batch_size=cache.batch_size,
        workers=cache.workers,
        on_progress=on_progress or (lambda _progress: None),
        failures=Failures(cache.max_failures_in_a_row) if cache.on_error == "skip" else None,
        partition=partition,
    )
    wait_for_everyone()
    on_main_process(writer.finish)
    if partition is None:
        _prove_complete(writer, recipe.cache_path)
    return recipe.cache_path


def _prove_complete(writer: CacheWriter, path: str | Path) -> None:
    missing = writer.missing_shards()
    if missing:
        raise StageError(
            "cache is incomplete, although every process wrote its share",
            where=path,
            expected=f"{writer.manifest.num_shards:,} shards",
            found=f"{len(missing):,} missing, the first of them {missing[0]}",
            mend="See that nobody deletes shards meanwhile, and run again; it goes on from there",
        )


def _prove_beginnable(recipe: Recipe, dataset: ConversationDataset) -> None:
    """Look at the cache before hours go into verbalizers: is its place to be had, is it another?"""
    cache = recipe.cache
    known: dict[str, object] = {
        "dataset": _identity(dataset),
        "sampling": Sampling(k=cache.k, m=cache.m, seed=recipe.seed),
        "samples_per_shard": cache.samples_per_shard,
        "batch_size": cache.batch_size,
    }
    if recipe.teacher.taps is not None:
        known["taps"] = (*sorted(recipe.teacher.taps), OUTPUT_TAP)
    prove_beginnable(recipe.cache_path, known)


def _identity(dataset: ConversationDataset) -> DatasetIdentity:
    return DatasetIdentity(
        source=dataset.source, fingerprint=dataset.fingerprint(), num_samples=len(dataset)
    )


def _recorder(recipe: Recipe, teacher: Backbone, bank: VerbalizerBank) -> TapRecorder:
    k, m = recipe.cache.k, recipe.cache.m
    if k + m > teacher.vocab_size:
        raise RecipeError(
            "cache.k + cache.m is larger than the vocabulary",
            where=teacher.name,
            expected=f"at most {teacher.vocab_size}",
            found=f"{k} + {m}",
            mend="Lower cache.k or cache.m",
        )
    num_taps = len(bank.taps) + 1
    for name, each, most in (("m", m, MAX_POOL), ("k", k, MAX_TOP)):
        if each * num_taps > most:
            raise RecipeError(
                "more entries per token, at all taps together, than the format holds",
                where=teacher.name,
                expected=f"at most {most}",
                found=f"cache.{name} {each} at {num_taps} taps",
                mend=f"Lower cache.{name}, or name fewer teacher.taps",
            )
    return TapRecorder(teacher.head, k=k, m=m)


def _manifest(
    recipe: Recipe, teacher: Backbone, bank: VerbalizerBank, dataset: ConversationDataset
) -> CacheManifest:
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
        dataset=_identity(dataset),
        taps=(*bank.taps, OUTPUT_TAP),
        sampling=Sampling(k=recipe.cache.k, m=recipe.cache.m, seed=recipe.seed),
        samples_per_shard=recipe.cache.samples_per_shard,
        batch_size=recipe.cache.batch_size,
        dtype=str(model.dtype).removeprefix("torch."),
    )
