"""Stage two, interaction: the student's taps learn from the cached teacher taps (METHOD §4)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor

from vlsi_cache.data import EncodedDataset
from vlsi_cache.matching import Matching, check_room, match_layers
from vlsi_cache.models import lora_config
from vlsi_cache.objectives import SparseTargets, Sweep, matched_divergence, sweep_head
from vlsi_cache.recipe import LoraSection, MatchingSection, Recipe
from vlsi_cache.stages.backbone import Backbone, run_backbone, save_checkpoint
from vlsi_cache.stages.batches import CachedBatches
from vlsi_cache.stages.ledger import StageFolder
from vlsi_cache.stages.processes import on_main_process
from vlsi_cache.stages.training import StageModule, discard_checkpoints, run_training
from vlsi_cache.store import Cache
from vlsi_cache.verbalizer import VerbalizerBank

__all__ = ["Interaction", "interact"]

logger = logging.getLogger(__name__)


class Interaction(StageModule):
    """Divergence to the matched teacher taps and to the teacher's output.

    Args:
        student: the student; gets LoRA adapters.
        bank: its verbalizers, trained along.
        lora: adapters' size.
        matching: layer matching.
        per_sample: one matching per sample instead of one per batch.
        num_teacher_taps: inner taps in the cache.
        seed: of adapters and matching draws.
    """

    accepts_loss_kwargs = True
    generator: torch.Generator

    def __init__(
        self,
        student: Backbone,
        bank: VerbalizerBank,
        lora: LoraSection,
        matching: Matching,
        *,
        per_sample: bool,
        num_teacher_taps: int,
        seed: int,
    ) -> None:
        super().__init__()
        check_room(len(bank.taps), num_teacher_taps, matching)
        config = lora_config(
            student.decoder, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # peft 0.21 asks transformers 5.23 by a deprecated name: nothing a user can mend
            warnings.simplefilter("ignore", FutureWarning)
            torch.manual_seed(seed)
            self.adapted = get_peft_model(student.decoder.model, config)
        self.bank = bank.requires_grad_(True)
        self.decoder = student.decoder
        self.vocab_size = student.vocab_size
        self.matching = matching
        self.per_sample = per_sample
        self.generator = torch.Generator(device=student.device).manual_seed(seed)

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        positions: Tensor,
        labels: Tensor,
        token_samples: Tensor,
        teacher_ids: Tensor,
        teacher_weights: Tensor,
        teacher_entropy: Tensor,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """Loss of Algorithm 1 plus KL at the output, nats per response token.

        Args:
            inputs: the student's.
            positions: ``[N]``, flat.
            labels: unused, part of every batch.
            token_samples: ``[N]``, row of the batch.
            teacher_ids: ``[N, L_t + 1, S]``, final output last.
            teacher_weights: same shape.
            teacher_entropy: ``[N, L_t + 1]``.
            num_items_in_batch: response tokens of the whole accumulated batch; N by default.
        """
        decoder = self.decoder
        targets = SparseTargets(teacher_ids, teacher_weights, teacher_entropy)
        inner = SparseTargets(teacher_ids[:, :-1], teacher_weights[:, :-1], teacher_entropy[:, :-1])
        states, final = run_backbone(decoder, self.bank.taps, inputs, positions)
        reads = self.bank(states, positions).values()
        sweeps = [self._sweep(decoder.features(read), inner) for read in reads]
        output = self._sweep(final, targets.candidate(-1))
        count = num_items_in_batch if num_items_in_batch is not None else len(labels)
        token_weights = torch.ones(len(labels), device=labels.device) / count
        to_mean = count / len(labels)
        chosen = self._match(sweeps, token_samples, inputs["input_ids"].shape[0])
        loss = matched_divergence(output, torch.zeros_like(labels), token_weights)
        self.observe("kl_output", loss * to_mean)
        for tap, sweep, matched in zip(self.bank.taps, sweeps, chosen, strict=True):
            tap_loss = matched_divergence(sweep, matched, token_weights)
            self.observe(f"kl_tap_{tap}", tap_loss * to_mean)
            self.observe(f"match_tap_{tap}", matched.float().mean())
            loss = loss + tap_loss
        return {"loss": loss}

    def _sweep(self, features: Tensor, targets: SparseTargets) -> Sweep:
        return sweep_head(features, self.decoder.head, targets, self.vocab_size)

    def _match(self, sweeps: list[Sweep], token_samples: Tensor, num_samples: int) -> list[Tensor]:
        """The matched teacher tap of every student tap and token, each ``[N]``."""
        divergence = torch.stack([sweep.divergences for sweep in sweeps])  # [L_s, N, L_t]
        if not self.per_sample:
            matched = match_layers(divergence.mean(1), self.matching, self.generator)
            return [row.expand(len(token_samples)) for row in matched]
        totals = divergence.new_zeros(len(sweeps), num_samples, divergence.shape[2])
        totals.index_add_(1, token_samples, divergence)
        counts = divergence.new_zeros(num_samples)
        counts.index_add_(0, token_samples, torch.ones_like(divergence[0, :, 0]))
        means = totals / counts.clamp_(min=1)[None, :, None]
        matched = match_layers(means.transpose(0, 1), self.matching, self.generator)  # [B, L_s]
        return list(matched[token_samples].T)


def interact(
    student: Backbone,
    bank: VerbalizerBank,
    cache: Cache,
    dataset: EncodedDataset,
    recipe: Recipe,
    folder: Path,
    *,
    inherited: Mapping[str, Any],
    autocast: bool,
) -> Path:
    """Train LoRA and verbalizers against the cache, merge, and save an ordinary checkpoint.

    Args:
        student: the untouched student.
        bank: its trained verbalizers.
        cache: a complete cache of the same data.
        dataset: the conversations.
        recipe: settings.
        folder: of the stage.
        inherited: settings of everything this stage builds on.
        autocast: bfloat16 autocast.

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
    num_teacher_taps = len(cache.manifest.taps) - 1
    if settings.matching.search_range and num_teacher_taps == len(bank.taps):
        logger.warning(
            "teacher and student have %d taps each, so each student tap can meet one teacher tap "
            "only; dump more teacher taps (teacher.taps) to let matching choose",
            num_teacher_taps,
        )
    module = Interaction(
        student,
        bank,
        settings.lora,
        _matching(settings.matching),
        per_sample=settings.matching.granularity == "sample",
        num_teacher_taps=num_teacher_taps,
        seed=recipe.seed,
    )
    if settings.gradient_checkpointing:
        student.decoder.model.activation_checkpointing_enable({"use_reentrant": False})
    run_training(
        "interaction",
        module,
        dataset,
        CachedBatches(student.encoder(recipe.data), recipe.cache_path),
        settings,
        folder,
        device=student.device,
        autocast=autocast,
        seed=recipe.seed,
    )
    adapted: Any = module.adapted.cpu().float()  # the sum is exact, and off the accelerator
    merged = adapted.merge_and_unload()
    save_checkpoint(merged, student.processor, result)
    stage.finish()
    on_main_process(lambda: discard_checkpoints(folder))
    return result


def _matching(section: MatchingSection) -> Matching:
    return Matching(
        strategy=section.strategy,
        search_range=section.search_range,
        order=section.order,
        adaptive_temperature=section.adaptive_temperature,
        temperature=section.temperature,
    )
