"""The loss of stage two: the student's taps and output against the teacher's record.

Shape suffixes: N response tokens of the batch, B samples, C = L_t teacher taps, S entries.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from vlsi_cache.errors import StageError
from vlsi_cache.matching import Match, match_layers, validate_reach
from vlsi_cache.models import Backbone, Decoder, Head, adapt, run_backbone
from vlsi_cache.objectives import (
    FORWARD,
    CandidateDivergences,
    Divergence,
    SparseTargets,
    candidate_divergences,
    frozen_head,
    label_targets,
)
from vlsi_cache.phases import phase
from vlsi_cache.recipe import Comparison, InteractionSection, LoraSection
from vlsi_cache.student.gradients import compare_gradients
from vlsi_cache.student.hidden_state import HiddenTarget
from vlsi_cache.training import StageModule
from vlsi_cache.verbalizer import VerbalizerBank

__all__ = ["Interaction"]

logger = logging.getLogger(__name__)


class Interaction(StageModule):
    """The loss of the student's taps against matched teacher taps, and of its output.

    Args:
        student: the student. It gets LoRA adapters, or its blocks' weights train.
        bank: its verbalizers, which train too; without taps where nothing inner is compared.
        settings: what is compared and matched, and what trains.
        teacher_taps: block indices of the cache's inner taps.
        seed: seed of the adapters' weights and of the matching's random choices.
        rank: index of this process, which chooses matchings for itself.
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
        if settings.matches_taps:
            validate_reach(len(bank.taps), len(teacher_taps), settings.matching)
        self.adapted = _learning(student.decoder, settings.lora, seed)
        self.bank = bank.requires_grad_(True)
        self.decoder = student.decoder
        self.vocab_size = student.vocab_size
        self.teacher_taps = torch.tensor(teacher_taps, device=student.device)
        self.seed, self.rank = seed, rank
        self.generator = torch.Generator(device=student.device)
        self.hidden: HiddenTarget | None = None
        """The block that learns a recorded hidden state, if one does. Set it before training."""
        self._unsound: Tensor | None = None
        self._warned_of_opposing = False
        self._looked_at_hidden = False
        self._measured_step = -1
        self._unsound_step = 0

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        positions: Tensor,
        labels: Tensor,
        token_samples: Tensor,
        targets: SparseTargets,
        num_items_in_batch: Tensor | int | None = None,
        **recorded: Tensor,
    ) -> dict[str, Tensor]:
        """Return the weighted sum of the taps' losses and the output's, per response token.

        Args:
            inputs: the student's own inputs.
            positions: ``[N]`` long, flat positions that predict the response tokens.
            labels: ``[N]`` long, the response tokens.
            token_samples: ``[N]`` long, each token's row of the batch.
            targets: ``[N, L_t + 1, S]``, the teacher's taps, its final output last.
            num_items_in_batch: response tokens of the whole accumulated batch; N by default.
            recorded: if a hidden state is learned, what ``HiddenTarget.cosines`` takes of it.
        """
        self._begin(labels.device, recorded)
        head = frozen_head(self.head, self.vocab_size)
        states, final = run_backbone(self.decoder, self._blocks, inputs, positions)
        output = self._output_loss(final, head, targets, labels)
        weight, inner = self.inner_weight(), {}
        if weight:  # it follows from the step, so all processes compute the taps, or none
            reads = [self.decoder.features(read) for read in self.bank(states, positions).values()]
            count = len(inputs["input_ids"])
            inner = self._inner_losses(reads, head, targets, labels, token_samples, count)
        self._observe_means(output | inner)
        sums = [loss.sum() for loss in output.values()]
        weighted = [loss.sum() * weight for loss in inner.values()]
        self._measure_gradients(sums, weighted)
        if (hidden := self.hidden) is not None:
            read = states[hidden.block].at(positions)
            sums.append(self._hidden_loss(hidden, read, recorded, torch.stack(sums).sum()))
        whole = torch.stack(sums + weighted).sum()
        self.falling = self._falling_share(weighted, whole)
        return {"loss": whole / (len(labels) if num_items_in_batch is None else num_items_in_batch)}

    def _observe_means(self, losses: Mapping[str, Tensor]) -> None:
        for name, loss in losses.items():
            self.observe(name, loss.mean())

    @property
    def _blocks(self) -> list[int]:
        """Blocks whose states are read: the taps, and the one that learns a hidden state."""
        return sorted({*self.bank.taps, *([self.hidden.block] if self.hidden else [])})

    def _hidden_loss(
        self, hidden: HiddenTarget, read: Tensor, recorded: Mapping[str, Tensor], output: Tensor
    ) -> Tensor:
        """Return the sum of 1 − cos of states ``[N, D]``, 0-d, scaled to the output's loss."""
        cosines = hidden.cosines(read, recorded)
        self.observe("hidden_cosine", cosines.mean())
        return hidden.weighed(cosines, output, counts=self.batch_weight)

    def _begin(self, device: torch.device, recorded: Mapping[str, Tensor]) -> None:
        """Begin a micro-batch, and observe the taps' weight if it falls."""
        wanted = {"hidden_signs", "rotations"} if self.hidden is not None else set()
        if recorded.keys() != wanted or (self.hidden is None) != (self.settings.hidden is None):
            raise TypeError(f"of a hidden state there are {sorted(recorded)}, not {sorted(wanted)}")
        self.seed_draws()
        if self.settings.inner_schedule is not None and self.settings.inner != "none":
            self.observe("inner_weight", torch.full((), self.inner_weight(), device=device))

    def _falling_share(self, weighted: Sequence[Tensor], whole: Tensor) -> Tensor | None:
        """Return the taps' share of the loss, 0-d, if their weight falls and is not 0 yet."""
        if self.settings.inner_schedule is None or not weighted:
            return None
        return (torch.stack(list(weighted)).sum() / whole).detach()

    def inner_weight(self) -> float:
        """Return the weight of every tap's loss at this point of the stage."""
        settings, schedule = self.settings, self.settings.inner_schedule
        weight = settings.inner_weight
        if settings.inner_weight_of == "all":
            weight /= max(len(self.bank.taps), 1)
        if schedule is None:
            return weight
        fallen = min(self.progress / schedule.until, 1.0)
        return weight * (1 + fallen * (schedule.end - 1))

    def _measure_gradients(self, output: Sequence[Tensor], taps: Sequence[Tensor]) -> None:
        """Compare the gradients of both losses, if they are due and there are both."""
        if self._measures_gradients() and output and taps:
            trained = [value for value in self.adapted.parameters() if value.requires_grad]
            first, second = (torch.stack(list(losses)).sum() for losses in (output, taps))
            norms, cosine = compare_gradients(first, second, trained)
            self.observe("gradient_output", norms[0])
            self.observe("gradient_taps", norms[1])
            self.observe("gradient_cosine", cosine)

    def _measures_gradients(self) -> bool:
        """Report whether this micro-batch is the first of a step whose gradients are measured."""
        every = self.settings.gradients_every
        if every is None or PartialState().num_processes > 1 or self.is_sharded:
            return False
        measured, self._measured_step = self._measured_step, self.step
        return self.step != measured and self.step % every == 0

    def _output_loss(
        self, final: Tensor, head: Head, targets: SparseTargets, labels: Tensor
    ) -> dict[str, Tensor]:
        """Return metric → loss of the student's output, ``[N]`` nats; empty if not compared."""
        comparison = self.settings.output
        if comparison == "none":
            return {}
        name, target = f"{_metric(comparison)}_output", self.settings.output_target
        if target is not None and _reads_teacher(comparison):
            number = self.teacher_taps.tolist().index(target.tap)
            both = targets.candidates(torch.tensor([number, -1], device=labels.device))
            shares = both.weights.new_tensor([target.share, 1 - target.share])
            return {name: self._compare(final, head, both, comparison).expected(shares)}
        wanted = targets.candidate(-1) if _reads_teacher(comparison) else label_targets(labels)
        found = self._compare(final, head, wanted, comparison)
        return {name: found.matched(torch.zeros_like(labels))}

    def _inner_losses(
        self,
        reads: Sequence[Tensor],
        head: Head,
        targets: SparseTargets,
        labels: Tensor,
        token_samples: Tensor,
        num_samples: int,
    ) -> dict[str, Tensor]:
        """Return metric → loss of each student tap, ``[N]`` nats; empty if not compared."""
        comparison = self.settings.inner
        if comparison == "none":
            return {}
        if self.settings.matches_taps:
            wanted = targets.candidates(slice(-1))
            compared = [self._compare(read, head, wanted, comparison) for read in reads]
            losses = self._matched(compared, token_samples, num_samples)
        else:
            wanted = targets.candidate(-1) if _reads_teacher(comparison) else label_targets(labels)
            compared = [self._compare(read, head, wanted, comparison) for read in reads]
            losses = [found.matched(torch.zeros_like(labels)) for found in compared]
        names = [f"{_metric(comparison)}_tap_{tap}" for tap in self.bank.taps]
        return dict(zip(names, losses, strict=True))

    def seed_draws(self) -> None:
        """Begin a micro-batch: its random matching follows from the batch's number alone."""
        self.generator.manual_seed(draw_seed(self.seed, self.rank, self.batches_seen))
        self.batches_seen += 1

    def units(self) -> list[nn.Module]:
        """Return the modules whose weights are gathered one after another."""
        return [*super().units(), *self.bank.units()]

    def end_sharding(self, device: torch.device) -> None:
        """Follow the weights to their device."""
        super().end_sharding(device)
        self.teacher_taps = self.teacher_taps.to(device)
        self.generator = torch.Generator(device=device)

    def is_unsound(self) -> Tensor | None:
        """Return whether divergences cannot be compared, 0-d, without waiting for the device."""
        return None if self._unsound is None else self._unsound.any()

    def find_problem(self) -> StageError | None:
        """Find divergences that cannot be compared: they would match the first teacher tap."""
        unsound, self._unsound = self._unsound, None
        if unsound is None or not unsound.any():
            return None
        named = {
            f"student tap {self.bank.taps[row]} and teacher tap {int(self.teacher_taps[column])}"
            for row, column in unsound.nonzero().tolist()
        }
        step = self._unsound_step
        return StageError(
            f"divergences are not finite at step {step}, between {', '.join(sorted(named)[:4])}"
            + (f" and {len(named) - 4} more pairs" if len(named) > 4 else ""),
            where="interaction",
            mend="Train the verbalizers again at a lower verbalization.learning_rate, lower "
            "interaction.learning_rate, or set student.dtype: float32",
        )

    def collect(self) -> dict[str, tuple[Tensor, int]]:
        """Return sums and counts of what was observed since the last call."""
        observed = super().collect()
        total, count = observed.get("gradient_cosine", (torch.zeros(()), 1))
        if float(total) < 0 and not self._warned_of_opposing:
            self._warned_of_opposing = True
            logger.warning(
                "the taps' gradient opposes the output's (cosine %.2f). Lower "
                "interaction.inner_weight, or let it fall by interaction.inner_schedule",
                float(total) / count,
            )
        self._look_at_hidden(observed)
        return observed

    def _look_at_hidden(self, observed: Mapping[str, tuple[Tensor, int]]) -> None:
        """Warn once where the first mean cosine of the hidden state is near 0."""
        total, count = observed.get("hidden_cosine", (torch.zeros(()), 0))
        if self.hidden is None or self._looked_at_hidden or not count:
            return
        self._looked_at_hidden = True
        if (advice := self.hidden.find_advice(float(total) / count)) is not None:
            logger.warning("%s", advice)

    def learned(self) -> PreTrainedModel:
        """Return the student's own model, the adapters merged into its weights, in float32."""
        adapted: Any = self.adapted.cpu().float()  # the sum is exact, and off the accelerator
        if isinstance(adapted, PeftModel):
            with phase("merging the adapters"):
                adapted = adapted.merge_and_unload()
        merged: PreTrainedModel = adapted
        return merged

    def _compare(
        self, features: Tensor, head: Head, targets: SparseTargets, comparison: Comparison
    ) -> CandidateDivergences:
        divergence = _divergence(comparison, self.settings)
        return candidate_divergences(features, head, targets, divergence)

    def _matched(
        self, compared: Sequence[CandidateDivergences], token_samples: Tensor, num_samples: int
    ) -> list[Tensor]:
        """Return the loss of every student tap against its teacher taps, each ``[N]`` nats."""
        divergence = torch.stack([found.values for found in compared])  # [L_s, N, L_t]
        means = divergence.mean(1)
        unsound = ~torch.isfinite(means.detach())
        if self._unsound is None:
            self._unsound, self._unsound_step = unsound, self.step + 1
        self._unsound = self._unsound | unsound
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
    """Return the student's model with what trains: adapters, or the blocks' own weights."""
    if lora is None:
        decoder.model.requires_grad_(False)
        decoder.blocks.requires_grad_(True)
        return decoder.model
    return adapt(decoder, lora, seed)


def draw_seed(seed: int, rank: int, batch: int) -> int:
    """Return the seed of one micro-batch's matching: another for every process and batch."""
    words = np.random.SeedSequence([seed, rank, batch]).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1  # 63 bits, which every generator takes


def _reads_teacher(comparison: Comparison) -> bool:
    return comparison not in ("ce", "none")


def _metric(comparison: Comparison) -> str:
    return "kl" if comparison == "forward" else comparison


def _divergence(comparison: Comparison, settings: InteractionSection) -> Divergence:
    if comparison == "ce" or comparison == "none":
        return FORWARD  # its value for hard labels is the cross-entropy
    return Divergence(comparison, settings.tail, settings.skew)


def _means_per_sample(divergence: Tensor, token_samples: Tensor, num_samples: int) -> Tensor:
    """Average ``[L_s, N, L_t]`` over every sample's tokens: ``[B, L_s, L_t]``."""
    totals = divergence.new_zeros(divergence.shape[0], num_samples, divergence.shape[2])
    totals.index_add_(1, token_samples, divergence)
    counts = divergence.new_zeros(num_samples)
    counts.index_add_(0, token_samples, torch.ones_like(divergence[0, :, 0]))
    return (totals / counts.clamp_(min=1)[None, :, None]).transpose(0, 1)
