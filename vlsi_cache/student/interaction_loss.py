"""The loss of stage two: the student's taps and output against the teacher's record.

Shape suffixes: N response tokens of the batch, B samples, C = L_t teacher taps, S entries.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from vlsi_cache.matching import Match, match_layers, validate_reach
from vlsi_cache.models import Backbone, Decoder, Head, lora_config, run_backbone
from vlsi_cache.objectives import (
    FORWARD,
    CandidateDivergences,
    Divergence,
    SparseTargets,
    candidate_divergences,
    label_targets,
)
from vlsi_cache.recipe import Comparison, InteractionSection, LoraSection
from vlsi_cache.training.trainer import StageModule
from vlsi_cache.verbalizer import VerbalizerBank

__all__ = ["Interaction"]


class Interaction(StageModule):
    """Comparison with the matched teacher taps, and with the teacher's output.

    Args:
        student: the student; gets LoRA adapters, or has its blocks' weights trained.
        bank: its verbalizers, trained along; of no taps where nothing inner is compared.
        settings: what is compared and matched, and what trains.
        teacher_taps: blocks of the cache's inner taps.
        seed: of adapters and matching draws.
        rank: of the process; each draws for itself.
    """

    accepts_loss_kwargs = True

    def __init__(
        self,
        student: Backbone,
        bank: VerbalizerBank,
        settings: InteractionSection,
        *,
        teacher_taps: Sequence[int],
        seed: int,
        rank: int = 0,
    ) -> None:
        super().__init__()
        self.settings = settings
        if _reads_teacher(settings.inner):
            validate_reach(len(bank.taps), len(teacher_taps), settings.matching)
        self.adapted = _learning(student.decoder, settings.lora, seed)
        self.bank = bank.requires_grad_(True)
        self.decoder = student.decoder
        self.vocab_size = student.vocab_size
        self.teacher_taps = torch.tensor(teacher_taps, device=student.device)
        self.seed, self.rank = seed, rank
        self.generator = torch.Generator(device=student.device)

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
        """Weighted sum of the inner taps' losses and the output's, per response token.

        Args:
            inputs: the student's.
            positions: ``[N]``, flat.
            labels: ``[N]``.
            token_samples: ``[N]``, row of the batch.
            teacher_ids: ``[N, L_t + 1, S]``, final output last.
            teacher_weights: same shape.
            teacher_entropy: ``[N, L_t + 1]``.
            num_items_in_batch: response tokens of the whole accumulated batch; N by default.
        """
        self.seed_draws()
        head = self.decoder.head.real_rows(self.vocab_size).to_autocast()  # a copy: only once
        states, final = run_backbone(self.decoder, self.bank.taps, inputs, positions)
        reads = [self.decoder.features(read) for read in self.bank(states, positions).values()]
        targets = SparseTargets(teacher_ids, teacher_weights, teacher_entropy)
        hard = label_targets(labels)
        losses: dict[str, Tensor] = {}  # each [N]
        inner_losses: dict[str, Tensor] = {}
        inner, output = self.settings.inner, self.settings.output
        if output != "none":
            wanted = targets.candidate(-1) if _reads_teacher(output) else hard
            found = self._compare(final, head, wanted, output)
            losses[f"{_metric(output)}_output"] = found.matched(torch.zeros_like(labels))
        if inner != "none":
            wanted = targets.candidates(slice(-1)) if _reads_teacher(inner) else hard
            compared = [self._compare(read, head, wanted, inner) for read in reads]
            if _reads_teacher(inner):
                per_tap = self._matched(compared, token_samples, len(inputs["input_ids"]))
            else:
                per_tap = [found.matched(torch.zeros_like(labels)) for found in compared]
            for tap, loss in zip(self.bank.taps, per_tap, strict=True):
                inner_losses[f"{_metric(inner)}_tap_{tap}"] = loss
        for name, loss in (losses | inner_losses).items():
            self.observe(name, loss.mean())
        count = num_items_in_batch if num_items_in_batch is not None else len(labels)
        sums = [loss.sum() for loss in losses.values()]
        sums += [loss.sum() * self.settings.inner_weight for loss in inner_losses.values()]
        return {"loss": torch.stack(sums).sum() / count}

    def seed_draws(self) -> None:
        """Begin a micro-batch: its matching draws follow from its number alone."""
        self.generator.manual_seed(draw_seed(self.seed, self.rank, self.batches_seen))
        self.batches_seen += 1

    def learned(self) -> nn.Module:
        """The student's own model, with what it learned merged into its weights, in float32."""
        adapted = self.adapted.cpu().float()  # the sum is exact, and off the accelerator
        return adapted.merge_and_unload() if isinstance(adapted, PeftModel) else adapted

    def _compare(
        self, features: Tensor, head: Head, targets: SparseTargets, comparison: Comparison
    ) -> CandidateDivergences:
        divergence = _divergence(comparison, self.settings)
        return candidate_divergences(features, head, targets, divergence)

    def _matched(
        self, compared: Sequence[CandidateDivergences], token_samples: Tensor, num_samples: int
    ) -> list[Tensor]:
        """Loss of every student tap against its teacher taps, each ``[N]``."""
        divergence = torch.stack([found.values for found in compared])  # [L_s, N, L_t]
        means = divergence.mean(1)
        matching = self.settings.matching
        if matching.granularity == "sample":
            means_per_sample = _means_per_sample(divergence, token_samples, num_samples)
            match = match_layers(means_per_sample, matching, self.generator)
        else:
            match = match_layers(means, matching, self.generator)
        self._observe_match(match, means)
        match = match.at(token_samples)
        if match.tap is not None:
            pairs = zip(compared, match.tap.unbind(1), strict=True)
            return [found.matched(tap) for found, tap in pairs]
        pairs = zip(compared, match.shares.unbind(1), strict=True)
        return [found.expected(shares) for found, shares in pairs]

    def _observe_match(self, match: Match, divergence: Tensor) -> None:
        shares = match.shares.reshape(-1, *match.shares.shape[-2:]).mean(0)
        self.observe("share", shares)
        self.observe("divergence", divergence)
        blocks = (shares * self.teacher_taps).sum(-1)
        for student_tap, block in zip(self.bank.taps, blocks, strict=True):
            self.observe(f"match_tap_{student_tap}", block)
        if match.temperature is not None and match.choice is not None:
            width = match.choice.shape[-1]
            self.observe("choice", match.choice.reshape(-1, width).mean(0))
            weighted = match.temperature * match.choice
            self.observe("weighted_temperature", weighted.reshape(-1, width).mean(0))


def _learning(decoder: Decoder, lora: LoraSection | None, seed: int) -> nn.Module:
    """The student's model, of which adapters train, or the blocks; head and final norm never do."""
    if lora is None:
        decoder.model.requires_grad_(False)
        decoder.blocks.requires_grad_(True)
        return decoder.model
    config = lora_config(decoder, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 by a deprecated name: nothing a user can mend
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(seed)
        return get_peft_model(decoder.model, config)


def draw_seed(seed: int, rank: int, batch: int) -> int:
    """Seed of one micro-batch's matching draws: another for every process and batch."""
    words = np.random.SeedSequence([seed, rank, batch]).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1  # 63 bits, which every generator takes


def _reads_teacher(comparison: Comparison) -> bool:
    return comparison not in ("ce", "none")


def _metric(comparison: Comparison) -> str:
    return "kl" if comparison == "forward" else comparison


def _divergence(comparison: Comparison, settings: InteractionSection) -> Divergence:
    if comparison == "ce" or comparison == "none":
        return FORWARD  # of hard labels: cross-entropy
    return Divergence(comparison, settings.tail, settings.skew)


def _means_per_sample(divergence: Tensor, token_samples: Tensor, num_samples: int) -> Tensor:
    """Mean divergence of every sample's tokens, ``[B, L_s, L_t]``, from ``[L_s, N, L_t]``."""
    totals = divergence.new_zeros(divergence.shape[0], num_samples, divergence.shape[2])
    totals.index_add_(1, token_samples, divergence)
    counts = divergence.new_zeros(num_samples)
    counts.index_add_(0, token_samples, torch.ones_like(divergence[0, :, 0]))
    return (totals / counts.clamp_(min=1)[None, :, None]).transpose(0, 1)
