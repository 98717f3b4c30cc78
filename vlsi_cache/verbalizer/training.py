"""Stage one: all verbalizers of one model from a single frozen forward (VLsI, CVPR 2025)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import TrainerCallback

from vlsi_cache.data import Conversation, IndexedConversations, TokenBatches, encoder_for
from vlsi_cache.models import Backbone, Decoder, Head, TapState, resolve_taps, run_backbone
from vlsi_cache.objectives import candidate_divergences, dense_divergence, label_targets
from vlsi_cache.recipe import ModelSection
from vlsi_cache.training import (
    Run,
    Stage,
    StageModule,
    Training,
    fresh_rate,
    plain_order,
    run_stage,
    samples_per_step,
)
from vlsi_cache.verbalizer.bank import VerbalizerBank, build_verbalizers
from vlsi_cache.verbalizer.checkpoint import (
    VERBALIZERS_FILE,
    load_verbalizers,
    save_verbalizers,
)
from vlsi_cache.verbalizer.ridge import start_by_ridge
from vlsi_cache.verbalizer.soundness import SoundSamples

__all__ = ["Verbalization", "early_settings", "find_verbalizers", "obtain_verbalizers"]

logger = logging.getLogger(__name__)

_FREQUENCIES = "frequencies"
"""The metric beside the taps': the loss of knowing the tokens' frequencies alone."""


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
    return run_stage(run, _stage(run, section, backbone, folder))


def early_settings(section: ModelSection) -> dict[str, Any]:
    """Return the settings of stage one that the recipe alone decides."""
    return {
        "verbalizer": section.verbalizer.identity(),
        "verbalization": section.verbalization.decisive(),
    }


def _stage(
    run: Run, section: ModelSection, backbone: Backbone, folder: Path
) -> Stage[Verbalization]:
    decoder = backbone.decoder
    schedule = section.verbalization
    taps = resolve_taps(section.taps, decoder.num_blocks, where=backbone.name)

    def start() -> Training[Verbalization]:
        bank = build_verbalizers(decoder, taps, section.verbalizer, seed=run.recipe.seed)
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
                schedule.batch_size,
                module.read,
            )

        return Training(
            module=module,
            begin=begin if section.verbalizer.starts_by_ridge else None,
            dataset=samples,
            collate=_NumberedBatches(collate),
            order=order,
            callbacks=(_PoorTaps(folder),),
            learning_rate=fresh_rate(decoder.hidden_size, samples_per_step(schedule)),
            autocast=backbone.autocast,
        )

    return Stage(
        name="verbalization",
        folder=folder,
        result=folder,
        schedule=schedule,
        settings={
            **run.settings(),
            **backbone.identity(),
            "taps": list(taps),
            **early_settings(section),
        },
        start=start,
        save=lambda module: save_verbalizers(module.bank, folder, backbone),
        config=VERBALIZERS_FILE,
    )


class Verbalization(StageModule):
    """The loss of every tap, from one forward of a frozen backbone.

    Args:
        decoder: the backbone. It is not registered, so that neither checkpoints nor DDP see it.
        bank: the verbalizers, which train.
        vocab_size: rows of the head that are real tokens.
        target: what each tap learns: ``label``, or ``final``, the model's own output.
        sound: leaves out samples whose states are not finite; all are learned from if None.
    """

    accepts_loss_kwargs = True

    def __init__(
        self,
        decoder: Decoder,
        bank: VerbalizerBank,
        vocab_size: int,
        target: str,
        *,
        sound: SoundSamples | None = None,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.bank = bank
        self.vocab_size = vocab_size
        self.target = target
        self.sound = sound
        self._label_counts = torch.zeros(vocab_size, dtype=torch.long)  # no buffer: DDP sends those

    def _by_frequency(self, labels: Tensor) -> Tensor:
        """Return the mean nats of these labels, 0-d, under the frequencies of the labels before.

        The counts are this process's since it began, so the value rises again after a resumption.
        They are interpolated with the uniform distribution, whose weight is the number of different
        tokens counted (Witten and Bell, 1991).
        """
        self._label_counts = counts = self._label_counts.to(labels.device)
        num_kinds = (counts > 0).sum().clamp(min=1)
        frequencies = (counts[labels] + num_kinds / self.vocab_size) / (counts.sum() + num_kinds)
        counts.index_add_(0, labels, torch.ones_like(labels))
        return -frequencies.log().mean()

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        positions: Tensor,
        labels: Tensor,
        token_samples: Tensor,
        sample_indices: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """Return the sum over taps of the mean loss over response tokens, nats.

        Args:
            inputs: the backbone's own inputs.
            positions: ``[N]`` long, flat positions that predict the response tokens.
            labels: ``[N]`` long, the response tokens.
            token_samples: ``[N]`` long, each token's row of the batch.
            sample_indices: ``[B]`` long, each row's index in the dataset.
            num_items_in_batch: response tokens of the whole accumulated batch; N by default.
        """
        decoder = self.decoder
        with torch.no_grad():
            states, final = run_backbone(decoder, self.bank.taps, inputs, positions)
        known = None
        if self.sound is not None and sample_indices is not None:
            known = self.sound.blank(states, final, positions, token_samples, sample_indices)
        hidden = self.bank(states, positions)
        head = self.head.real_rows(self.vocab_size).to_autocast()  # a copy: only once
        count = num_items_in_batch if num_items_in_batch is not None else len(labels)
        loss = torch.zeros((), device=labels.device)
        if self.target == "label":
            self.observe(_FREQUENCIES, self._by_frequency(labels))
        for tap, read in hidden.items():
            per_token = self._tap_loss(decoder.features(read), head, labels, final)
            total, mean = _over_sound(per_token, known)
            self.observe(f"tap_{tap}", mean)
            loss = loss + total / count
        return {"loss": loss}

    def read(
        self, taps: Sequence[int], inputs: Mapping[str, Tensor], positions: Tensor
    ) -> tuple[dict[int, TapState], Tensor]:
        """Run the backbone alone, as ``run_backbone`` does."""
        return run_backbone(self.decoder, taps, inputs, positions)

    def train(self, mode: bool = True) -> Verbalization:
        """Set the mode of the verbalizers. The frozen backbone reads without dropout."""
        super().train(mode)
        self.decoder.model.eval()
        return self

    def units(self) -> list[nn.Module]:
        """Return the modules whose weights are gathered one after another."""
        return [*super().units(), *self.bank.units()]

    def begin_sharding(self) -> None:
        """Take in the backbone, whose weights are sharded with the verbalizers'."""
        self.backbone = self.decoder.model
        super().begin_sharding()

    def end_sharding(self, device: torch.device) -> None:
        """Follow the weights to their device."""
        super().end_sharding(device)
        register_fsdp_forward_method(self, "read")  # it gathers weights, as the forward does

    def release(self) -> None:
        """Let go of the backbone, which has not changed."""
        del self.backbone

    def collect(self) -> dict[str, tuple[Tensor, int]]:
        """Return sums and counts of what was observed since the last call.

        Raises:
            StageError: a sample's states are not finite, and it is not to be skipped.
        """
        if self.sound is not None:
            self.sound.validate()
        return super().collect()

    def _tap_loss(self, features: Tensor, head: Head, labels: Tensor, final: Tensor) -> Tensor:
        """Return the loss of every token, ``[N]`` nats."""
        if self.target == "final":
            return dense_divergence(features, head, final, head)
        found = candidate_divergences(features, head, label_targets(labels))
        return found.matched(torch.zeros_like(labels))


@dataclass(frozen=True, slots=True)
class _NumberedBatches:
    """Batches with the index of each sample in the dataset."""

    tokens: TokenBatches

    def __call__(self, items: Sequence[tuple[int, Conversation]]) -> dict[str, Any]:
        numbers = torch.tensor([index for index, _ in items])
        return {**self.tokens(items), "sample_indices": numbers}


def _over_sound(per_token: Tensor, sound: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return sum and mean of the sound tokens' losses; the sum is scaled up to all tokens."""
    if sound is None:
        return per_token.sum(), per_token.mean()
    kept = torch.where(sound, per_token, 0.0)
    num_kept = sound.sum().clamp(min=1)
    return kept.sum() * (len(sound) / num_kept), kept.sum() / num_kept


class _PoorTaps(TrainerCallback):
    """Warns at the end about taps from which stage two would learn noise.

    Args:
        folder: the stage's folder, for the message.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.means: dict[str, float] = {}

    def on_log(self, args, state, control, logs=None, **kwargs):  # type: ignore[no-untyped-def]
        """Keep the last line of metrics."""
        if _FREQUENCIES in logs:
            self.means = logs

    def on_train_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Compare each tap with the tokens' frequencies."""
        if not self.means or not state.is_world_process_zero:
            return
        if state.global_step < state.max_steps:
            return  # interrupted, and not at the end
        chance = self.means[_FREQUENCIES]
        poor = [
            f"{name.removeprefix('tap_')} ({mean:.2f})"
            for name, mean in self.means.items()
            if name.startswith("tap_") and mean >= chance
        ]
        if poor:
            logger.warning(
                "%s: verbalizers end no better than the bare frequencies of the tokens (%.2f nats)"
                " at taps %s. Stage two would learn noise from them. Train them longer "
                "(verbalization.steps or epochs) or at a higher verbalization.learning_rate",
                self.folder,
                chance,
                ", ".join(poor),
            )
