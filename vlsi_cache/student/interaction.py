"""Stage two, interaction: train against the cache, merge, and save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback

from vlsi_cache.data import IndexedConversations, encoder_for
from vlsi_cache.models import Backbone
from vlsi_cache.recipe import Recipe
from vlsi_cache.store import Cache
from vlsi_cache.student.arrivals import recorded_order
from vlsi_cache.student.cached_batches import CachedBatches
from vlsi_cache.student.interaction_loss import Interaction
from vlsi_cache.student.journal import MatchingJournal
from vlsi_cache.training.checkpoint import save_checkpoint
from vlsi_cache.training.folder import StageFolder
from vlsi_cache.training.processes import on_main_process
from vlsi_cache.training.trainer import discard_checkpoints, run_training
from vlsi_cache.verbalizer import VerbalizerBank

__all__ = ["interact"]


def interact(
    student: Backbone,
    bank: VerbalizerBank,
    cache: Cache,
    dataset: IndexedConversations,
    recipe: Recipe,
    folder: Path,
    *,
    inherited: Mapping[str, Any],
    autocast: bool,
    callbacks: Sequence[TrainerCallback] = (),
) -> Path:
    """Train student and verbalizers against the cache, merge, and save an ordinary checkpoint.

    Args:
        student: the untouched student.
        bank: its trained verbalizers; of no taps where nothing inner is compared.
        cache: of the same data; complete, unless it is to be followed.
        dataset: the conversations.
        recipe: settings.
        folder: of the stage.
        inherited: settings of everything this stage builds on.
        autocast: bfloat16 autocast.
        callbacks: of the Trainer.

    Returns:
        Folder of the merged student, in float32 where the student was.

    Raises:
        StageError: too few teacher taps, or the folder holds another run's stage.
        CacheMismatchError: a sample or its response tokens differ from the cache's.
    """
    settings = recipe.interaction
    result = folder / "model"
    stage = StageFolder(folder, {**inherited, "interaction": settings.decisive()})
    if not stage.begin(result / "config.json"):
        return result
    teacher_taps = cache.manifest.taps[:-1]
    module = Interaction(
        student,
        bank,
        settings,
        teacher_taps=teacher_taps,
        seed=recipe.seed,
        rank=PartialState().process_index,
    )
    if settings.gradient_checkpointing:
        student.decoder.model.activation_checkpointing_enable({"use_reentrant": False})
    run_training(
        "interaction",
        module,
        dataset,
        CachedBatches(encoder_for(student, recipe.data), recipe.cache_path, settings.tail),
        settings,
        folder,
        device=student.device,
        autocast=autocast,
        seed=recipe.seed,
        order=recorded_order(cache, settings, folder),
        journal=MatchingJournal(folder, student_taps=bank.taps, teacher_taps=teacher_taps),
        callbacks=callbacks,
    )
    save_checkpoint(module.learned(), student.name, result)
    stage.finish()
    on_main_process(lambda: discard_checkpoints(folder))
    return result
