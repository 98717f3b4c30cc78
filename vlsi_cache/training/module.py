"""``StageModule``: what a stage trains, with the values that it observes on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from vlsi_cache.errors import VlsiCacheError
from vlsi_cache.models import Decoder, Head, TapState, run_backbone
from vlsi_cache.objectives import (
    SparseTargets,
    candidate_divergences,
    frozen_head,
    label_targets,
)

__all__ = ["StageModule"]


class StageModule(nn.Module):
    """A module whose forward returns ``{"loss": …}``, and which observes metrics.

    A forward that draws random numbers counts its micro-batches in ``batches_seen``. The count is
    saved and restored with the parameters, so that draws that follow from it are those of an
    unbroken run.
    """

    decoder: Decoder
    """View of the model inside."""
    vocab_size: int
    """Rows of the head that are real tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.batches_seen = 0
        self.batch_weight = 1
        """1, or 0 for a batch that only keeps this process in step with the others."""
        self.progress = 0.0
        """Part of the stage's steps that are done, from 0 to 1."""
        self.step = 0
        """Optimizer steps that are done."""
        self.tokens_seen = 0
        """Response tokens of all processes, since this command began."""
        self.falling: Tensor | None = None
        """Share of the last forward's loss whose weight falls in the course of the stage, 0-d."""
        self._observed: dict[str, tuple[Tensor, int]] = {}
        self._head_places: dict[str, tuple[nn.Module, str]] = {}

    def observe(self, name: str, value: Tensor) -> None:
        """Add a value to the running mean of ``name``, without waiting for the device.

        A 0-d value is a metric. A larger one is a table, which goes to the stage's journal.
        """
        value = value.detach().float()  # a long sum in autocast's dtype would stop growing
        total, count = self._observed.get(name, (torch.zeros_like(value), 0))
        if self.batch_weight:
            total = total + value
        self._observed[name] = (total, count + self.batch_weight)

    def measure(
        self,
        inputs: Mapping[str, Tensor],
        positions: Tensor,
        labels: Tensor,
        targets: SparseTargets | None = None,
    ) -> dict[str, Tensor]:
        """Return the figures of every response token at the output, ``[N]`` nats each.

        Args:
            inputs: the model's own inputs.
            positions: ``[N]`` long, flat positions that predict the response tokens.
            labels: ``[N]`` long, the response tokens.
            targets: ``[N, L_t + 1, S]``, the teacher's taps, its output last, if there are any.

        Returns:
            ``loss``, the cross-entropy to the labels. With targets also ``divergence``,
            KL(teacher ‖ model).
        """
        _, final = run_backbone(self.decoder, (), inputs, positions)
        head = frozen_head(self.head, self.vocab_size)
        wanted = {"loss": label_targets(labels)}
        if targets is not None:
            wanted["divergence"] = targets.candidate(-1)
        return {
            name: candidate_divergences(final, head, one).values[:, 0]
            for name, one in wanted.items()
        }

    def read(
        self, taps: Sequence[int], inputs: Mapping[str, Tensor], positions: Tensor
    ) -> tuple[dict[int, TapState], Tensor]:
        """Run the model alone, as ``run_backbone`` does. Weights may be sharded."""
        return run_backbone(self.decoder, taps, inputs, positions)

    def is_unsound(self) -> Tensor | None:
        """Return whether a forward met what is not finite, 0-d, beside its loss; None if not known.

        The device is not waited for.
        """
        return None

    def find_problem(self) -> VlsiCacheError | None:
        """Return what the forwards have met that is not finite, and forget it."""
        return None

    def restore(self, observed: Mapping[str, tuple[Tensor, int]]) -> None:
        """Go back to what was observed before."""
        self._observed = dict(observed)

    def observed(self) -> dict[str, tuple[Tensor, int]]:
        """Return sums and counts of what was observed so far, to go back to."""
        return dict(self._observed)

    def collect(self) -> dict[str, tuple[Tensor, int]]:
        """Return sums and counts of what was observed since the last call."""
        observed = self._observed
        self._observed = {}
        return observed

    @property
    def head(self) -> Head:
        """The decoder's head. While weights are sharded, those that the forward has gathered."""
        head = self.decoder.head
        if not self.is_sharded:
            return head
        found = {name: getattr(part, own) for name, (part, own) in self._head_places.items()}
        return Head(found["weight"], found.get("bias"), head.transform)

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a slice of the weights."""
        return bool(self._head_places)

    def units(self) -> list[nn.Module]:
        """Return the modules whose weights are gathered one after another.

        Every process must run all of them in each step. A tower runs only where there are images,
        so it is gathered with what lies outside the units.
        """
        return list(self.decoder.blocks)

    def with_unused(self, loss: Tensor) -> Tensor:
        """Give a tower that no image of this batch has reached a gradient of 0.

        Processes that share its weights put their gradients together, and all must have one.
        """
        if not self.is_sharded:
            return loss
        used = {id(value) for value in self.decoder.body.parameters()}
        used |= {id(value) for value in (self.head.weight, self.head.bias)}
        for value in self.parameters():
            # at this moment the units' weights are slices, and all others are gathered
            gathered = value.requires_grad and not isinstance(value, DTensor)
            if gathered and id(value) not in used:
                loss = loss + 0.0 * value.flatten()[0]
        return loss

    def begin_sharding(self) -> None:
        """Note where the head's weights are kept: sharding puts others into their places."""
        head = self.decoder.head
        for name, value in (("weight", head.weight), ("bias", head.bias)):
            for part in self.modules():
                for own, parameter in part.named_parameters(recurse=False):
                    if parameter is value:
                        self._head_places[name] = (part, own)

    def release(self) -> None:
        """Let go of what is not part of the result, before it is put together."""

    def end_sharding(self, device: torch.device) -> None:
        """Follow the weights to their device.

        The decoder's own head still names the weights from before. They are emptied, so that
        nobody reads them, and their memory is free.
        """
        for name in ("measure", "read"):  # they gather weights, as the forward does
            register_fsdp_forward_method(self, name)
        for value in (self.decoder.head.weight, self.decoder.head.bias):
            if value is not None:
                value.data = value.data.new_empty(0, *value.shape[1:])
