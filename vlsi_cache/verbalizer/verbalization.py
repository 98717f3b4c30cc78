"""The loss of stage one: every tap's, from one forward of a frozen model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from accelerate import PartialState
from torch import Tensor, nn

from vlsi_cache.models import Decoder, Head, is_split, run_backbone
from vlsi_cache.objectives import (
    candidate_divergences,
    dense_divergence,
    frozen_head,
    label_targets,
)
from vlsi_cache.training import StageModule
from vlsi_cache.training.processes import own_part
from vlsi_cache.verbalizer.bank import VerbalizerBank
from vlsi_cache.verbalizer.soundness import SoundSamples

__all__ = ["FREQUENCIES", "Verbalization"]

FREQUENCIES = "frequencies"
"""The metric beside the taps': the loss of knowing the tokens' frequencies alone."""


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
        places = {**bank.devices, "head": decoder.head.weight.device}
        state = PartialState()
        if state.num_processes == 1 and set(places.values()) != {state.device}:
            self.hf_device_map = places  # keeps the Trainer from moving all to one device
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
            known = known.to(self.head.weight.device)
        count = num_items_in_batch if num_items_in_batch is not None else len(labels)
        if isinstance(count, Tensor):
            count = count.to(self.head.weight.device)
        if self.target == "label":
            self.observe(FREQUENCIES, self._by_frequency(labels))
        device, part = labels.device, None
        labels = labels.to(self.head.weight.device)
        if is_split(decoder.model):
            own = own_part(len(labels))
            part = _Part.of(labels, known, own)
            positions, labels, final = positions[own], labels[own], final[own]
        reads = {tap: decoder.features(read) for tap, read in self.bank(states, positions).items()}
        losses = self._losses(reads, labels, final)
        return {"loss": self._summed(losses, part, known, count).to(device)}

    def _losses(
        self, reads: Mapping[int, Tensor], labels: Tensor, final: Tensor
    ) -> dict[int, Tensor]:
        """Return each tap's loss of every token, ``[N]`` nats."""
        head = frozen_head(self.head, self.vocab_size)
        return {tap: self._tap_loss(read, head, labels, final) for tap, read in reads.items()}

    def _summed(
        self,
        losses: Mapping[int, Tensor],
        part: _Part | None,
        known: Tensor | None,
        count: Tensor | int,
    ) -> Tensor:
        """Return the sum over taps of their mean losses, and observe each."""
        loss = torch.zeros((), device=self.head.weight.device)
        for tap, per_token in losses.items():
            total, mean = part.over(per_token) if part else _over_sound(per_token, known)
            self.observe(f"tap_{tap}", mean)
            loss = loss + total / count
        return loss

    def train(self, mode: bool = True) -> Verbalization:
        """Set the mode of the verbalizers. The frozen backbone reads without dropout."""
        super().train(mode)
        self.decoder.model.eval()
        return self

    def units(self) -> list[nn.Module]:
        """Return the modules whose weights are gathered one after another."""
        units = self.bank.units()
        return units if is_split(self.decoder.model) else [*super().units(), *units]

    def begin_sharding(self) -> None:
        """Take in the backbone, whose weights are sharded with the verbalizers'.

        One that the processes hold together already stays as it is.
        """
        if not is_split(self.decoder.model):
            self.backbone = self.decoder.model
            super().begin_sharding()

    def end_sharding(self, device: torch.device) -> None:
        """Follow the weights to their device."""
        if not is_split(self.decoder.model):
            super().end_sharding(device)

    def release(self) -> None:
        """Let go of the backbone, which has not changed."""
        if not is_split(self.decoder.model):
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


def _over_sound(per_token: Tensor, sound: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return sum and mean of the sound tokens' losses; the sum is scaled up to all tokens."""
    if sound is None:
        return per_token.sum(), per_token.mean()
    kept = torch.where(sound, per_token, 0.0)
    num_kept = sound.sum().clamp(min=1)
    return kept.sum() * (len(sound) / num_kept), kept.sum() / num_kept


@dataclass(frozen=True, slots=True)
class _Part:
    """This process's part of a batch's tokens, where several compute one loss."""

    sound: Tensor
    """``[n]`` bool: which of them are learned from."""
    num_tokens: int
    """Tokens of the whole batch."""
    num_sound: Tensor
    """Those of them that are learned from, 0-d."""

    @staticmethod
    def of(labels: Tensor, sound: Tensor | None, own: slice) -> _Part:
        """Return the part that a slice selects."""
        known = torch.ones_like(labels, dtype=torch.bool) if sound is None else sound
        return _Part(known[own], len(known), known.sum().clamp(min=1))

    def over(self, per_token: Tensor) -> tuple[Tensor, Tensor]:
        """Return a sum, and a value whose mean over the processes is the batch's mean."""
        kept = torch.where(self.sound, per_token, 0.0).sum()
        mean = kept / self.num_sound
        return mean * self.num_tokens, mean * PartialState().num_processes
