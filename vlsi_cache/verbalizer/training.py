"""Stage one: all verbalizers of one model from a single frozen forward (VLsI, CVPR 2025)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from vlsi_cache.data import ConversationDataset, IndexedConversations, TokenBatches, encoder_for
from vlsi_cache.models import Backbone, Decoder, Head, resolve_taps, run_backbone
from vlsi_cache.objectives import candidate_divergences, dense_divergence, label_targets
from vlsi_cache.recipe import DataSection, ModelSection
from vlsi_cache.training.folder import StageFolder
from vlsi_cache.training.lock import one_job_at_a_time
from vlsi_cache.training.processes import on_main_process
from vlsi_cache.training.trainer import StageModule, discard_checkpoints, run_training
from vlsi_cache.verbalizer import (
    VerbalizerBank,
    build_verbalizers,
    load_verbalizers,
    save_verbalizers,
)

__all__ = ["Verbalization", "obtain_verbalizers"]

logger = logging.getLogger(__name__)

_FREQUENCIES = "frequencies"
"""The metric beside the taps': what the tokens' frequencies alone come to."""


class Verbalization(StageModule):
    """The loss of every tap, over one forward of a frozen backbone.

    Args:
        decoder: the backbone; not registered, so that neither checkpoints nor DDP see it.
        bank: what trains.
        vocab_size: rows of the head that are real tokens.
        target: ``label`` or ``final``.
    """

    accepts_loss_kwargs = True

    def __init__(
        self, decoder: Decoder, bank: VerbalizerBank, vocab_size: int, target: str
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.bank = bank
        self.vocab_size = vocab_size
        self.target = target
        self._label_counts = torch.zeros(vocab_size, dtype=torch.long)  # no buffer: DDP sends those

    def _by_frequency(self, labels: Tensor) -> Tensor:
        """Nats of these labels, 0-d, by how often each token was one in the batches before.

        They are this process's since it began, so that it is higher again after a resumption.
        The counts are interpolated with the uniform distribution, which weighs as much as there
        are different tokens among them (Witten and Bell, 1991).
        """
        self._label_counts = counts = self._label_counts.to(labels.device)
        kinds = (counts > 0).sum().clamp(min=1)
        shares = (counts[labels] + kinds / self.vocab_size) / (counts.sum() + kinds)
        counts.index_add_(0, labels, torch.ones_like(labels))
        return -shares.log().mean()

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        positions: Tensor,
        labels: Tensor,
        token_samples: Tensor,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """Sum over taps of the mean loss over response tokens.

        Args:
            inputs: the backbone's.
            positions: ``[N]``, flat.
            labels: ``[N]``.
            token_samples: unused, part of every batch.
            num_items_in_batch: response tokens of the whole accumulated batch; N by default.
        """
        decoder = self.decoder
        with torch.no_grad():
            states, final = run_backbone(decoder, self.bank.taps, inputs, positions)
        hidden = self.bank(states, positions)
        head = decoder.head.real_rows(self.vocab_size).to_autocast()  # a copy: only once
        count = num_items_in_batch if num_items_in_batch is not None else len(labels)
        loss = torch.zeros((), device=labels.device)
        if self.target == "label":
            self.observe(_FREQUENCIES, self._by_frequency(labels))
        for tap, read in hidden.items():
            per_token = self._tap_loss(decoder.features(read), head, labels, final)
            self.observe(f"tap_{tap}", per_token.mean())
            loss = loss + per_token.sum() / count
        return {"loss": loss}

    def _tap_loss(self, features: Tensor, head: Head, labels: Tensor, final: Tensor) -> Tensor:
        """Nats of every token, ``[N]``."""
        if self.target == "final":
            return dense_divergence(features, head, final, head)
        found = candidate_divergences(features, head, label_targets(labels))
        return found.matched(torch.zeros_like(labels))


def obtain_verbalizers(
    backbone: Backbone,
    section: ModelSection,
    dataset: ConversationDataset,
    data: DataSection,
    folder: Path,
    *,
    seed: int,
    autocast: bool,
) -> VerbalizerBank:
    """Trained verbalizers of a backbone: the named ones, the finished ones, or newly trained.

    Of several jobs that find none, one trains and the others wait.

    Args:
        backbone: frozen.
        section: the recipe's ``teacher`` or ``student``.
        dataset: conversations to train on.
        data: the recipe's data section.
        folder: where they are kept if none are named.
        seed: of initial weights and data order.
        autocast: bfloat16 autocast in training.

    Raises:
        ModelError: named verbalizers are unusable, or taps are out of range.
        StageError: the folder holds verbalizers made with other settings.
    """
    decoder = backbone.decoder
    if section.verbalizers is not None:
        return load_verbalizers(section.verbalizers, decoder, fingerprint=backbone.fingerprint)
    taps = resolve_taps(section.taps, decoder.num_blocks, where=backbone.name)
    with one_job_at_a_time(folder):
        stage = StageFolder(folder, _settings(backbone, section, taps, dataset, data, seed))
        if not stage.begin(folder / "verbalizers.json"):
            return load_verbalizers(folder, decoder, fingerprint=backbone.fingerprint)
        bank = build_verbalizers(decoder, taps, section.verbalizer, seed=seed)
        run_training(
            "verbalization",
            Verbalization(decoder, bank, backbone.vocab_size, section.verbalization.target),
            IndexedConversations(dataset),
            TokenBatches(encoder_for(backbone, data)),
            section.verbalization,
            folder,
            device=backbone.device,
            autocast=autocast,
            seed=seed,
            callbacks=(_PoorTaps(folder),),
        )
        bank.eval().requires_grad_(False)
        on_main_process(
            lambda: save_verbalizers(
                bank,
                folder,
                decoder=decoder,
                backbone=backbone.name,
                fingerprint=backbone.fingerprint,
            )
        )
        stage.finish()
        on_main_process(lambda: discard_checkpoints(folder))
        return bank


class _PoorTaps(TrainerCallback):
    """Warns at the end of taps from which stage two would learn noise.

    Args:
        folder: of the stage, for the message.
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
        chance = self.means[_FREQUENCIES]
        poor = [
            f"{name.removeprefix('tap_')} ({mean:.2f})"
            for name, mean in self.means.items()
            if name.startswith("tap_") and mean >= chance
        ]
        if poor:
            logger.warning(
                "%s: verbalizers end no better than the bare frequencies of the tokens (%.2f nats)"
                " at taps %s, and stage two would learn noise from them; train them longer "
                "(verbalization.steps or epochs) or at a higher verbalization.learning_rate",
                self.folder,
                chance,
                ", ".join(poor),
            )


def _settings(
    backbone: Backbone,
    section: ModelSection,
    taps: tuple[int, ...],
    dataset: ConversationDataset,
    data: DataSection,
    seed: int,
) -> dict[str, Any]:
    return {
        **backbone.identity(),
        "taps": list(taps),
        "verbalizer": section.verbalizer.model_dump(),
        "verbalization": section.verbalization.decisive(),
        "data": dataset.fingerprint(),
        "max_length": data.max_length,
        "seed": seed,
    }
