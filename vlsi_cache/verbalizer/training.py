"""Stage one: all verbalizers of one model from a single frozen forward (VLsI, CVPR 2025)."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers import TrainerCallback

from vlsi_cache.data import Conversation, IndexedConversations, TokenBatches, encoder_for
from vlsi_cache.errors import StageError
from vlsi_cache.models import (
    Backbone,
    Decoder,
    is_split,
    resolve_taps,
)
from vlsi_cache.recipe import ModelSection, Schedule
from vlsi_cache.training import (
    Run,
    Stage,
    StageFolder,
    Training,
    fresh_rate,
    plain_order,
    run_stage,
    samples_per_step,
)
from vlsi_cache.training.folders.stage_folder import one_job_at_a_time
from vlsi_cache.verbalizer.bank import VerbalizerBank, build_verbalizers
from vlsi_cache.verbalizer.checkpoint import (
    VERBALIZERS_FILE,
    load_verbalizers,
    save_verbalizers,
)
from vlsi_cache.verbalizer.groups import train_in_groups
from vlsi_cache.verbalizer.ridge import start_by_ridge
from vlsi_cache.verbalizer.soundness import SoundSamples
from vlsi_cache.verbalizer.verbalization import FREQUENCIES, Verbalization

__all__ = ["early_settings", "find_verbalizers", "obtain_verbalizers"]

logger = logging.getLogger(__name__)


def obtain_verbalizers(
    run: Run, section: ModelSection, backbone: Backbone, folder: Path
) -> VerbalizerBank:
    """Load the verbalizers that the recipe names or a run has finished, or train them.

    Args:
        run: what all stages share.
        section: the recipe's ``teacher`` or ``student``.
        backbone: the frozen model.
        folder: where the verbalizers are kept if the recipe names none.

    Raises:
        ModelError: named verbalizers are unusable, or taps are out of range.
        StageError: the folder holds verbalizers made with other settings.
    """
    folder = find_verbalizers(run, section, backbone, folder)
    return load_verbalizers(folder, backbone.decoder, fingerprint=backbone.fingerprint)


def find_verbalizers(run: Run, section: ModelSection, backbone: Backbone, folder: Path) -> Path:
    """Return the folder of the verbalizers, which are trained unless they are there.

    The arguments and errors are those of ``obtain_verbalizers``, which reads them as well. A model
    that is sharded to train them cannot take them in.
    """
    if section.verbalizers is not None:
        return section.verbalizers
    found = _train(run, section, backbone, folder)
    gc.collect()  # the stage's module, its slices and its optimizer refer to one another
    return found


def early_settings(section: ModelSection) -> dict[str, Any]:
    """Return the settings of stage one that the recipe alone decides."""
    if not section.verbalizer.trains:
        return {"verbalizer": section.verbalizer.identity()}
    return {
        "verbalizer": section.verbalizer.identity(),
        "verbalization": section.verbalization.decisive(),
    }


def _samples_per_step(schedule: Schedule, decoder: Decoder) -> int:
    """Count the samples of a step: processes that hold one model together read the same ones."""
    samples = samples_per_step(schedule)
    return samples // PartialState().num_processes if is_split(decoder.model) else samples


def _train(run: Run, section: ModelSection, backbone: Backbone, folder: Path) -> Path:
    """Train all taps at once, or group after group."""
    taps = resolve_taps(section.taps, backbone.decoder.num_blocks, where=backbone.name)
    plan = _Plan(run, section, backbone, taps)
    if not section.verbalizer.trains:
        return _keep_lenses(plan, folder)
    size = section.verbalization.taps_at_once or len(taps)
    if size >= len(taps):
        return run_stage(run, plan.stage(taps, folder))
    if run.sharding is not None:
        raise StageError(
            "taps_at_once trains one group after another, which a sharded model cannot",
            where=f"{run.role}.verbalization.taps_at_once",
            mend="Leave it out: FSDP slices the verbalizers too",
        )
    groups = [taps[start : start + size] for start in range(0, len(taps), size)]
    stages = [partial(plan.group_stage, group) for group in groups]
    return train_in_groups(run, backbone, folder, plan.settings(taps), stages)


def _keep_lenses(plan: _Plan, folder: Path) -> Path:
    """Write down verbalizers that have nothing to train."""
    backbone, taps = plan.backbone, plan.taps
    kept = StageFolder(folder, plan.settings(taps), folder / VERBALIZERS_FILE)
    kept.validate_settings()
    with one_job_at_a_time(folder):
        if kept.enter():
            bank = build_verbalizers(backbone.decoder, taps, plan.section.verbalizer, seed=0)
            kept.finish(lambda: save_verbalizers(bank, folder, backbone))
            logger.info("verbalization: a logit lens has nothing to train (%s)", folder)
    return folder


@dataclass(frozen=True, slots=True)
class _Plan:
    """Makes the stages that train the taps of one model."""

    run: Run
    section: ModelSection
    backbone: Backbone
    taps: tuple[int, ...]

    def settings(self, taps: Sequence[int]) -> dict[str, Any]:
        """Return everything that the verbalizers of some taps depend on."""
        found = {
            **self.run.settings(),
            **self.backbone.identity(),
            "taps": list(taps),
            **early_settings(self.section),
        }
        # the first weights follow from one seed, in the order of all taps
        return found if tuple(taps) == self.taps else {**found, "among": list(self.taps)}

    def group_stage(self, taps: Sequence[int], folder: Path) -> Stage[Verbalization]:
        """Return the stage of a group of taps, inside the whole stage's folder."""
        return self.stage(taps, folder / f"taps-{taps[0]}-{taps[-1]}")

    def stage(self, taps: Sequence[int], folder: Path) -> Stage[Verbalization]:
        """Return the stage that trains some taps together."""
        return Stage(
            name="verbalization",
            folder=folder,
            result=folder,
            schedule=self.section.verbalization,
            settings=self.settings(taps),
            start=lambda: self._start(taps, folder),
            save=lambda module: save_verbalizers(module.bank, folder, self.backbone),
            config=VERBALIZERS_FILE,
        )

    def _start(self, taps: Sequence[int], folder: Path) -> Training[Verbalization]:
        run, backbone, schedule = self.run, self.backbone, self.section.verbalization
        decoder = backbone.decoder
        bank = build_verbalizers(
            decoder, taps, self.section.verbalizer, seed=run.recipe.seed, among=self.taps
        )
        samples = IndexedConversations(run.data)
        collate = TokenBatches(encoder_for(backbone, run.recipe.data))
        order = plain_order(len(run.data), run.left_out.indices)
        target, sound = schedule.target, SoundSamples(run)
        module = Verbalization(decoder, bank, backbone.vocab_size, target, sound=sound)

        def begin() -> None:
            start_by_ridge(
                bank,
                backbone,
                lambda indices: collate([samples[index] for index in indices]),
                np.concatenate(order.groups),
                1 if schedule.batch_tokens else schedule.batch_size,  # one sample keeps the bound
                module.read,
            )

        return Training(
            module=module,
            begin=begin if self.section.verbalizer.starts_by_ridge else None,
            dataset=samples,
            collate=_NumberedBatches(collate),
            order=order,
            callbacks=(_PoorTaps(folder, run.role),),
            learning_rate=self._rate(),
            autocast=backbone.autocast,
            shares_batches=is_split(decoder.model),
        )

    def _rate(self) -> float:
        decoder, section = self.backbone.decoder, self.section
        samples = _samples_per_step(section.verbalization, decoder)
        fitted = section.verbalizer.starts_by_ridge
        return fresh_rate(decoder.hidden_size, samples, fitted=fitted)


@dataclass(frozen=True, slots=True)
class _NumberedBatches:
    """Batches with the index of each sample in the dataset."""

    tokens: TokenBatches

    def __call__(self, items: Sequence[tuple[int, Conversation]]) -> dict[str, Any]:
        numbers = torch.tensor([index for index, _ in items])
        return {**self.tokens(items), "sample_indices": numbers}


class _PoorTaps(TrainerCallback):
    """Warns at the end about taps from which stage two would learn noise.

    Args:
        folder: the stage's folder, for the message.
        role: whose verbalizers they are, ``teacher`` or ``student``.
    """

    def __init__(self, folder: Path, role: str) -> None:
        self.folder, self.role = folder, role
        self.means: dict[str, float] = {}

    def on_log(self, args, state, control, logs=None, **kwargs):  # type: ignore[no-untyped-def]
        """Keep the last line of metrics."""
        if FREQUENCIES in logs:
            self.means = logs

    def on_train_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Compare each tap with the tokens' frequencies."""
        if not self.means or not state.is_world_process_zero:
            return
        if state.global_step < state.max_steps:
            return  # interrupted, and not at the end
        chance = self.means[FREQUENCIES]
        poor = [
            f"{name.removeprefix('tap_')} ({mean:.2f})"
            for name, mean in self.means.items()
            if name.startswith("tap_") and mean >= chance
        ]
        if poor:
            logger.warning(
                "%s: verbalizers end no better than the bare frequencies of the tokens (%.2f nats)"
                " at taps %s. Stage two would learn noise from them. Train them longer "
                "(%s.verbalization.steps or epochs), or at another learning_rate there",
                self.folder,
                chance,
                ", ".join(poor),
                self.role,
            )
