"""Stage two, interaction: train against the cache, merge the adapters, and save."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from transformers import TrainerCallback

from vlsi_cache.data import IndexedConversations, encoder_for
from vlsi_cache.models import Backbone
from vlsi_cache.store import Cache
from vlsi_cache.student.cached import CachedBatches, recorded_order
from vlsi_cache.student.card import card_of
from vlsi_cache.student.choosing import HeldOutSamples, chosen_by, held_out_of
from vlsi_cache.student.hidden_state import hidden_target, start_map
from vlsi_cache.student.interaction_loss import Interaction
from vlsi_cache.student.journal import MatchingJournal
from vlsi_cache.training import (
    Run,
    SampleOrder,
    Stage,
    Training,
    interaction_rates,
    run_stage,
    save_model,
)
from vlsi_cache.training.samples.first_batches import FirstBatches
from vlsi_cache.verbalizer import VerbalizerBank, keep_exits, verbalizers_fingerprint

__all__ = ["RestingVerbalizers", "interact"]


def interact(
    run: Run,
    student: Backbone,
    bank: VerbalizerBank,
    cache: Cache,
    held_out: HeldOutSamples | None = None,
) -> Path:
    """Train student and verbalizers against the cache, merge, and save an ordinary checkpoint.

    Args:
        run: what all stages share.
        student: the untouched student.
        bank: its trained verbalizers; without taps where nothing inner is compared.
        cache: the record of the same data; complete, unless it is to be followed.
        held_out: the samples on which the student is measured, if any.

    Returns:
        Folder of the merged student, in float32 where the student was.

    Raises:
        StageError: there are too few teacher taps, or the folder holds another run's stage.
        CacheMismatchError: a sample or its response tokens differ from the cache's.
    """
    folder = run.recipe.output / "interaction"
    result = folder / "model"
    stage = Stage(
        name="interaction",
        folder=folder,
        result=result,
        schedule=run.recipe.interaction,
        settings=_settings(run, student, bank, cache) | chosen_by(held_out),
        start=lambda: replace(
            _start(run, student, bank, cache, folder),
            held_out=held_out_of(held_out, student, run.recipe),
        ),
        save=lambda module: _save(module, student, run, cache, result),
    )
    return run_stage(run, stage)


def _settings(run: Run, student: Backbone, bank: VerbalizerBank, cache: Cache) -> dict[str, object]:
    return {
        **run.settings(),
        **student.identity(),
        "verbalizers": verbalizers_fingerprint(bank),
        "cache": cache.manifest.model_dump(mode="json"),
        "interaction": run.recipe.interaction.decisive(),
    }


class RestingVerbalizers(TrainerCallback):
    """Lets verbalizers rest once taps no longer count: AdamW's momentum would still move them.

    They have no gradients then, or those of 0 that an engine of several processes leaves.
    """

    def __init__(self, module: Interaction) -> None:
        self.module = module

    def on_pre_optimizer_step(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Take the gradients away, as a single process has none."""
        if not self.module.inner_weight():
            self.module.bank.zero_grad(set_to_none=True)


def _save(module: Interaction, student: Backbone, run: Run, cache: Cache, folder: Path) -> None:
    """Save the merged student with its card, and its verbalizers as exits."""
    learned = module.learned()
    save_model(learned, run.recipe.student, folder, card_of(run, cache, learned.config))
    schedule = module.settings.inner_schedule
    rested = schedule is not None and not schedule.end and schedule.until < 1
    keep_exits(module.bank, student, learned, folder, rested=rested)


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
    decoder, norm = student.decoder, settings.verbalizer_max_grad_norm
    module.hidden = hidden_target(cache, decoder, settings)
    rate, verbalizer_rate = interaction_rates(settings, decoder.hidden_size, decoder.num_weights)
    maps = "bank.", "hidden."
    batches = CachedBatches(
        *(encoder_for(student, run.recipe.data), cache, settings.tail),
        with_hidden=module.hidden is not None,
    )
    samples = IndexedConversations(run.data)
    order = recorded_order(cache, settings, folder, run.left_out.unknown_to_cache)
    return Training(
        module=module,
        dataset=samples,
        collate=batches,
        order=order,
        begin=_beginning(module, samples, batches, order, autocast=student.autocast),
        journal=MatchingJournal(folder, student_taps=bank.taps, teacher_taps=teacher_taps),
        callbacks=(*run.callbacks, RestingVerbalizers(module)),
        learning_rate=rate,
        other_rates=dict.fromkeys(maps, verbalizer_rate),
        other_norms={} if norm is None else dict.fromkeys(maps, norm),
        autocast=student.autocast,
        start_method=batches.start_method,
        guards_samples=True,
    )


def _beginning(
    module: Interaction,
    samples: IndexedConversations,
    batches: CachedBatches,
    order: SampleOrder,
    *,
    autocast: bool,
) -> Callable[[], None] | None:
    """Return what sets the first weights of a hidden state's map, if there is one."""
    hidden, schedule = module.hidden, module.settings
    if hidden is None or hidden.map is None:
        return None

    def collate(indices: list[int]) -> dict[str, Any]:
        return batches([samples[index] for index in indices])

    def begin() -> None:
        # of a cache that is followed, the first shards
        groups = next(parcel.groups for parcel in order.parcels(0) if parcel.groups)
        size = 1 if schedule.batch_tokens else schedule.batch_size  # one sample keeps the bound
        first = FirstBatches(collate, np.concatenate(groups), size)
        start_map(module, hidden, first, autocast=autocast)

    return begin
