"""Stage two, interaction: train against the cache, merge the adapters, and save."""

from __future__ import annotations

from pathlib import Path

from accelerate import PartialState

from vlsi_cache.data import IndexedConversations, encoder_for
from vlsi_cache.models import Backbone
from vlsi_cache.recipe import InteractionSection
from vlsi_cache.store import Cache
from vlsi_cache.student.arrivals import recorded_order
from vlsi_cache.student.cached_batches import CachedBatches
from vlsi_cache.student.interaction_loss import Interaction
from vlsi_cache.student.journal import MatchingJournal
from vlsi_cache.training import Run, Stage, Training, run_stage
from vlsi_cache.training.checkpoints import save_model
from vlsi_cache.training.rates import (
    TRAINED,
    adapter_rate,
    finetuning_rate,
    fresh_rate,
    samples_per_step,
)
from vlsi_cache.training.unreadable import find_left_out
from vlsi_cache.verbalizer import VerbalizerBank, verbalizers_fingerprint

__all__ = ["interact"]


def interact(run: Run, student: Backbone, bank: VerbalizerBank, cache: Cache) -> Path:
    """Train student and verbalizers against the cache, merge, and save an ordinary checkpoint.

    Args:
        run: what all stages share.
        student: the untouched student.
        bank: its trained verbalizers; without taps where nothing inner is compared.
        cache: the record of the same data; complete, unless it is to be followed.

    Returns:
        Folder of the merged student, in float32 where the student was.

    Raises:
        StageError: there are too few teacher taps, or the folder holds another run's stage.
        CacheMismatchError: a sample or its response tokens differ from the cache's.
    """
    folder = run.recipe.output / "interaction"
    section = run.recipe.interaction
    result = folder / "model"
    stage = Stage(
        name="interaction",
        folder=folder,
        result=result,
        schedule=section,
        settings={
            **run.settings(),
            **student.identity(),
            "verbalizers": verbalizers_fingerprint(bank),
            "cache": cache.manifest.model_dump(mode="json"),
            "interaction": section.decisive(),
        },
        start=lambda: _start(run, student, bank, cache, folder),
        save=lambda module: save_model(module.learned(), run.recipe.student, result),
    )
    return run_stage(run, stage)


def _start(
    run: Run, student: Backbone, bank: VerbalizerBank, cache: Cache, folder: Path
) -> Training[Interaction]:
    settings = run.recipe.interaction
    seed = run.recipe.seed
    rank = PartialState().process_index
    teacher_taps = cache.manifest.taps[:-1]
    module = Interaction(student, bank, settings, teacher_taps=teacher_taps, seed=seed, rank=rank)
    if settings.gradient_checkpointing:
        student.decoder.model.activation_checkpointing_enable({"use_reentrant": False})
    left_out = find_left_out(run, "interaction", student, settings.workers)
    batches = CachedBatches(encoder_for(student, run.recipe.data), cache, settings.tail)
    return Training(
        module=module,
        dataset=IndexedConversations(run.data),
        collate=batches,
        order=recorded_order(cache, settings, folder, left_out.unreadable),
        journal=MatchingJournal(folder, student_taps=bank.taps, teacher_taps=teacher_taps),
        callbacks=run.callbacks,
        learning_rate=_rate(student, settings),
        other_rates={"bank.": _verbalizer_rate(student, settings)},
        autocast=student.autocast,
        start_method=batches.start_method,
    )


def _rate(student: Backbone, settings: InteractionSection) -> float:
    """Return the default rate of what moves the student: adapters, or the blocks' own weights."""
    decoder, samples = student.decoder, samples_per_step(settings)
    if settings.lora is None:
        return finetuning_rate(decoder.num_weights, samples)
    scale = settings.lora.alpha / settings.lora.rank
    return adapter_rate(decoder.hidden_size, scale, samples)


def _verbalizer_rate(student: Backbone, settings: InteractionSection) -> float:
    """Return the rate of verbalizers that stage one has trained already."""
    if settings.verbalizer_learning_rate is not None:
        return settings.verbalizer_learning_rate
    return TRAINED * fresh_rate(student.decoder.hidden_size, samples_per_step(settings))
