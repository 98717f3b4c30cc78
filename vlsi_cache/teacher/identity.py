"""What a cache is begun with: its manifest, from the recipe, the data and the teacher."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedConfig

from vlsi_cache.hidden import HiddenSigns, HiddenTap
from vlsi_cache.manifest import (
    OUTPUT_TAP,
    CacheManifest,
    ConfigIdentity,
    DatasetIdentity,
    TeacherIdentity,
    TokenizerIdentity,
    format_version_of,
)
from vlsi_cache.models import (
    Backbone,
    chat_template_hash,
    resolve_taps,
    tokenizer_of,
    vocabulary_hash,
)
from vlsi_cache.models.places.arguments import loading_identity
from vlsi_cache.models.places.quantization import quantization_of
from vlsi_cache.recipe import Recipe
from vlsi_cache.sampling import TapRecorder, remembered_order
from vlsi_cache.store import CacheWriter, create_cache, is_begun, open_cache, validate_beginnable
from vlsi_cache.teacher.checks import hidden_identity, sampling_of, validate_entries
from vlsi_cache.teacher.reading import TeacherPass
from vlsi_cache.training import Run
from vlsi_cache.verbalizer import VerbalizerBank, verbalizers_fingerprint

__all__ = ["begin_dump", "validate_cache_folder", "validate_cache_of", "validate_cache_settings"]


def validate_cache_folder(run: Run) -> None:
    """Refuse the cache of other data before the verbalizers train, not after.

    Raises:
        CacheMismatchError: the cache there was begun with other settings.
        CacheError: the folder holds something else, or cannot be used.
    """
    validate_beginnable(run.recipe.cache_path, {"dataset": _dataset_identity(run)})


def validate_cache_settings(recipe: Recipe, config: PreTrainedConfig, processor: Any) -> None:
    """Refuse the cache of another teacher, as far as it shows without weights.

    Args:
        recipe: description of the run.
        config: the teacher's configuration.
        processor: its processor.

    Raises:
        CacheMismatchError: the cache there was begun with other settings.
        CacheError: the cache there is damaged.
    """
    if not is_begun(recipe.cache_path):
        return
    begun, section = open_cache(recipe.cache_path).manifest, recipe.teacher
    asked = quantization_of(config) or section.quantization
    # what was asked for is recorded with what follows from it
    quantised = begun.teacher.loading.get("quantization", asked) if asked else {}
    own = {"quantization": quantised} if quantised else {}
    known: dict[str, Any] = {
        "model_type": config.model_type,
        "revision": section.revision,
        "loading": loading_identity(section) | own,
    }
    found: dict[str, Any] = {
        "teacher": begun.teacher.model_copy(update=known),
        "tokenizer": begun.tokenizer.model_copy(
            update={"hash": vocabulary_hash(tokenizer_of(processor))}
        ),
        "chat_template_hash": chat_template_hash(processor),
    }
    if section.dtype != "auto" and not quantised:
        found["dtype"] = section.dtype
    validate_beginnable(recipe.cache_path, found)


def validate_cache_of(run: Run, teacher: Backbone, processor: Path) -> None:
    """Refuse the cache of another teacher before its verbalizers train, not after.

    Args:
        run: the recipe and its data.
        teacher: the model.
        processor: folder of its processor, as it was before its use.

    Raises:
        CacheMismatchError: the cache there was begun with other settings, or another processor.
    """
    known = _known_fields(run, teacher)
    section = run.recipe.teacher
    if section.verbalizers is None:
        taps = resolve_taps(section.taps, teacher.decoder.num_blocks, where=teacher.name)
        known["taps"] = (*taps, OUTPUT_TAP)
    validate_beginnable(run.recipe.cache_path, known, processor)


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
    num_taps = len(bank.taps) + 1
    validate_entries(run.recipe, teacher.name, vocab_size=teacher.vocab_size, num_taps=num_taps)
    manifest = _manifest(run, teacher, bank)
    head = teacher.head
    sampling = manifest.sampling
    of_whole = not sampling.k or sampling.drawn_from == "whole"
    order = remembered_order(head.weight, run.recipe.output) if of_whole else None
    recorder = TapRecorder(
        head, k=sampling.k, m=sampling.m, drawn_from=sampling.drawn_from, order=order
    )
    with PartialState().main_process_first():  # only one may publish the processor
        writer = create_cache(run.recipe.cache_path, manifest, processor)
    if teacher.autocast:  # as they were trained; the fingerprint above is of the float32 weights
        bank = bank.to(torch.bfloat16)
    hidden = _hidden_tap(manifest)
    return TeacherPass(teacher, bank, recorder, run.recipe.seed, hidden), writer


def _hidden_tap(manifest: CacheManifest) -> HiddenTap | None:
    kept = manifest.hidden
    if kept is None:
        return None
    return HiddenTap(kept.block, HiddenSigns(kept.width, kept.bits, manifest.sampling.seed))


def _manifest(run: Run, teacher: Backbone, bank: VerbalizerBank) -> CacheManifest:
    return CacheManifest(
        **_known_fields(run, teacher),
        vlsi_cache_version=version("vlsi-cache"),
        verbalizers_fingerprint=verbalizers_fingerprint(bank),
        taps=(*bank.taps, OUTPUT_TAP),
        batch_size=run.recipe.cache.batch_size,
    )


def _known_fields(run: Run, teacher: Backbone) -> dict[str, Any]:
    """Return the compared fields that are known before there are verbalizers."""
    model = teacher.decoder.model
    sampling = sampling_of(run.recipe)
    decoder = teacher.decoder
    hidden = hidden_identity(run.recipe, decoder.num_blocks, decoder.hidden_size)
    return {
        "format_version": format_version_of(sampling, has_hidden=hidden is not None),
        "teacher": TeacherIdentity(
            name=teacher.name,
            model_type=model.config.model_type,
            weights_fingerprint=teacher.fingerprint,
            revision=run.recipe.teacher.revision,
            loading=dict(teacher.loading),
            config=ConfigIdentity(sha256=teacher.config_hash, transformers=version("transformers")),
        ),
        "tokenizer": TokenizerIdentity(
            name=teacher.name,
            hash=vocabulary_hash(tokenizer_of(teacher.processor)),
            vocab_size=teacher.vocab_size,
        ),
        "chat_template_hash": chat_template_hash(teacher.processor),
        "processor_options": run.recipe.teacher.processor,
        "dataset": _dataset_identity(run),
        "sampling": sampling,
        "hidden": hidden,
        "samples_per_shard": run.recipe.cache.samples_per_shard,
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def _dataset_identity(run: Run) -> DatasetIdentity:
    return DatasetIdentity(
        source=run.data.source, fingerprint=run.fingerprint(), num_samples=len(run.data)
    )
