"""``Redo``: one step again, without the samples whose loss or gradient is not finite.

Every process runs as many passes as the others, so that weights may be shared or sharded. To find
the samples, all of them run the same one at a time. Any process can read any sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from vlsi_cache.errors import VlsiCacheError
from vlsi_cache.training.loop.guarding.unsound import UNSOUND_GRADIENT
from vlsi_cache.training.loop.pieces import num_tokens
from vlsi_cache.training.module import StageModule
from vlsi_cache.training.processes import gathered, gathered_numbers, raise_together
from vlsi_cache.training.sharding import whole

__all__ = ["Redo", "StepPasses", "StepStart", "are_finite", "gradient_norm"]

Piece = tuple[tuple[int, ...], int]
"""Indices of a pass's samples, and its weight."""
RunPasses = Callable[[Sequence[dict[str, Any]], Tensor], Tensor]
"""Runs passes whose gradients add up, for so many tokens, and returns their loss."""


@dataclass(slots=True)
class StepStart:
    """What a step finds, so that it can begin again, and the passes that it runs."""

    batches_seen: int
    observed: dict[str, tuple[Tensor, int]]
    logged: Tensor
    """The Trainer's sum of the losses before the step."""
    pieces: list[Piece] = field(default_factory=list)

    def num_samples(self) -> int:
        """Count the samples of this process. Those of a spare piece are not its own."""
        return sum(len(piece) for piece, weight in self.pieces if weight)


@dataclass(frozen=True, slots=True)
class StepPasses:
    """How a stage runs the passes of a step."""

    module: StageModule
    collate: Callable[[Sequence[int]], dict[str, Any]]
    """Indices of samples → their batch."""
    run: RunPasses
    """Runs passes whose gradients the last one exchanges with the other processes."""
    run_alone: RunPasses
    """Runs passes whose gradients stay in this process, unless its weights are sharded."""
    device: torch.device
    rank: int


class Redo:
    """Finds the samples that spoil a step, and runs the others.

    Args:
        passes: how passes run.
        start: where the step began.
        count: response tokens of the step.
    """

    def __init__(self, passes: StepPasses, start: StepStart, count: Tensor) -> None:
        self._passes = passes
        self.start = start
        self._count = count
        self._after = passes.module.batches_seen
        every: list[list[Piece]] = gathered([start.pieces])
        self._every = [[piece for piece, weight in pieces if weight] for pieces in every]
        found = {index for pieces in every for piece, _ in pieces for index in piece}
        self.samples = sorted(found)

    def find_unsound(self) -> dict[int, str]:
        """Return index → reason of the samples that are not sound alone."""
        found = {}
        for index in self.samples:
            reason = next((other for other in gathered([self._reason(index)]) if other), None)
            if reason is not None:
                found[index] = reason
        self._begin()
        return found

    def _reason(self, index: int) -> str | None:
        module = self._passes.module
        self._begin()
        loss = self._passes.run_alone([self._read([index], 1)], self._count)
        is_finite = are_finite(gradient_norm(module))  # sharded weights need all processes
        problem = module.find_problem()
        if problem is not None:
            return problem.what
        if not torch.isfinite(loss):
            return f"its loss is {float(loss)}"
        return None if is_finite else UNSOUND_GRADIENT

    def run(self, unsound: Mapping[int, str]) -> Tensor | None:
        """Run the step without some samples, and return its loss; None if no sample remains.

        Without any, each sample passes by itself: something is not finite only in company.
        """
        self._begin()
        module = self._passes.module
        pieces = [self._remaining(own, unsound) for own in self._every]
        longest = max(map(len, pieces))
        if longest == 0:
            module.batches_seen = self._after
            return None
        spare = next(piece for own in pieces for piece in own)[:1]
        own = pieces[self._passes.rank]
        batches = [self._read(piece, 1) for piece in own]
        batches += [self._read(spare, 0) for _ in range(longest - len(own))]
        count = sum(gathered_numbers(sum(map(num_tokens, batches))))
        loss = self._passes.run(batches, torch.tensor(max(count, 1), device=self._passes.device))
        module.batches_seen = self._after
        return loss

    @staticmethod
    def _remaining(pieces: Sequence[Sequence[int]], unsound: Mapping[int, str]) -> list[list[int]]:
        if not unsound:
            return [[index] for piece in pieces for index in piece]
        kept = [[index for index in piece if index not in unsound] for piece in pieces]
        return [piece for piece in kept if piece]

    def _read(self, indices: Sequence[int], weight: int) -> dict[str, Any]:
        batch: dict[str, Any] = {}
        problem: VlsiCacheError | None = None
        try:
            batch = self._passes.collate(indices)
        except VlsiCacheError as error:
            problem = error
        raise_together(problem)
        return {**batch, "weight": weight, "indices": tuple(indices)}

    def _begin(self) -> None:
        """Forget what the module's passes have left behind since the step began."""
        module = self._passes.module
        module.zero_grad(set_to_none=True)
        module.batches_seen = self.start.batches_seen
        module.restore(self.start.observed)
        module.find_problem()


def gradient_norm(module: nn.Module) -> Tensor:
    """Return the norm of all gradients, 0-d; where weights are sharded, every process must call."""
    gradients = [value.grad for value in module.parameters() if value.grad is not None]
    norms = [whole(gradient.norm()).float().cpu() for gradient in gradients]
    return get_total_norm(norms) if norms else torch.zeros(())


def are_finite(*values: Tensor) -> bool:
    """Report whether all of these are finite; it waits for the device."""
    return all(bool(torch.isfinite(value).all()) for value in values)
