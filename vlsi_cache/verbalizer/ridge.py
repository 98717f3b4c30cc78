"""The closed-form start of stage one: ridge regression from each tap to the model's last state.

The linear map that is nearest to the last state, in least squares, is known without training. It
reads a tap far better than the logit lens does, and costs one pass over some of the data. Belrose
et al. (Eliciting Latent Predictions from Transformers with the Tuned Lens, 2023) train the same map
by gradient; Jump to Conclusions (Din et al., 2023) fits it as here.

Shapes: N response tokens, D hidden size.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce, send_to_device
from torch import Tensor

from vlsi_cache.errors import VlsiCacheError
from vlsi_cache.models import Backbone, TapState, is_split, run_backbone
from vlsi_cache.phases import phase
from vlsi_cache.training.processes import own_part, raise_together
from vlsi_cache.training.sharding import like
from vlsi_cache.verbalizer.bank import VerbalizerBank

__all__ = ["TapMoments", "start_by_ridge"]

logger = logging.getLogger(__name__)

_TOKENS_PER_DIMENSION: Final = 16
"""Response tokens that are read, by D. Twice as many brought 0.05 nats at most on SmolLM2-135M."""
_RIDGE: Final = 1e-2
"""Penalty on the distance from the identity, by the mean of the second moments' diagonal."""


class TapMoments:
    """Second moments of one tap, summed over tokens: 2 D² numbers in float32.

    Args:
        size: D.
        device: where the sums are.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.own = torch.zeros(size, size, device=device)
        """``Σ h hᵀ``, ``[D, D]``."""
        self.cross = torch.zeros(size, size, device=device)
        """``Σ h yᵀ``, ``[D, D]``, where y is the last state."""

    def add(self, state: Tensor, last: Tensor) -> None:
        """Add tokens.

        Args:
            state: ``[N, D]`` the tap's states.
            last: ``[N, D]`` the last block's states.
        """
        state, last = state.float(), last.to(state.device, torch.float32)
        self.own += state.T @ state
        self.cross += state.T @ last

    def change(self, penalty: float = _RIDGE) -> Tensor:
        """Return ``Δ`` ``[D, D]``, for which ``h + Δ h`` is nearest to the last state.

        It minimises ``Σ ‖h + Δ h − y‖² + λ ‖Δ‖²``. With few tokens it stays near 0, which is the
        logit lens.

        Args:
            penalty: λ by the mean of the diagonal of ``own``.
        """
        if not self.own.any():
            return self.own  # no token was sound: the logit lens
        if self.own.device.type == "mps":  # which has no float64
            self.own, self.cross = self.own.cpu(), self.cross.cpu()
        own = self.own.double()
        weight = penalty * float(own.diagonal().mean())
        damped = own + weight * torch.eye(len(own), dtype=own.dtype, device=own.device)
        solved: Tensor = torch.linalg.solve(damped, self.cross.double() - own)
        return solved.T.float()


@torch.no_grad()
def start_by_ridge(
    bank: VerbalizerBank,
    backbone: Backbone,
    collate: Callable[[list[int]], dict[str, Any]],
    indices: np.ndarray[Any, Any],
    batch_size: int,
    read: Callable[..., tuple[dict[int, TapState], Tensor]] | None = None,
) -> None:
    """Set each verbalizer's linear map to the ridge regression towards the model's last state.

    Every process reads its slice of the samples, as many batches as the others. Processes that hold
    one model together read the same, and each adds a part of the tokens.

    Args:
        bank: the untrained verbalizers.
        backbone: the frozen model.
        collate: indices of samples → a batch with ``inputs`` and ``positions``.
        indices: the samples to choose from.
        batch_size: samples per forward pass.
        read: ``run_backbone`` of a model whose weights are sharded; the plain one if None.
    """
    decoder = backbone.decoder
    read = read or partial(run_backbone, decoder)
    size, last_block = decoder.hidden_size, decoder.num_blocks - 1
    taps = [tap for tap in bank.taps if tap != last_block]
    # beside the block that each reads, like the verbalizers
    moments = {tap: TapMoments(size, bank.devices[str(tap)]) for tap in taps}
    num_tokens, shared = 0, is_split(decoder.model)
    batches = _Batches(collate, indices, batch_size, shared)
    with phase("reading states, for the verbalizers' closed-form start"):
        for batch, num_own in batches.until(_TOKENS_PER_DIMENSION * size):
            positions = batch["positions"][batch["token_samples"] < num_own]
            positions = positions[own_part(len(positions))] if shared else positions
            inputs, positions = send_to_device((batch["inputs"], positions), backbone.device)
            states, _ = read((*moments, last_block), inputs, positions)
            own = {tap: state.at(positions) for tap, state in states.items()}
            num_tokens += _add_finite(moments, own, own[last_block])
    with phase("solving for the verbalizers' closed-form start"):
        _solve(moments, bank)
    logger.info("verbalizers begin at the closed form, fitted to %s tokens", f"{num_tokens:,}")


def _solve(moments: Mapping[int, TapMoments], bank: VerbalizerBank) -> None:
    """Set the maps of the bank, from the moments of all processes."""
    for tap, found in moments.items():
        found.own, found.cross = reduce(found.own, "sum"), reduce(found.cross, "sum")
        change = bank.linear_change(tap)
        change.copy_(like(found.change().to(change.device), change))


def _add_finite(moments: Mapping[int, TapMoments], own: Mapping[int, Tensor], last: Tensor) -> int:
    """Add the tokens whose states are finite at every tap, and return how many they are."""
    finite = torch.ones(len(last), dtype=torch.bool, device=last.device)
    for each in own.values():
        finite &= torch.isfinite(each).all(1).to(finite.device)
    for tap, found in moments.items():
        found.add(_kept(own[tap], finite), _kept(last, finite))
    return int(finite.sum())


def _kept(read: Tensor, finite: Tensor) -> Tensor:
    kept: Tensor = read[finite.to(read.device)]
    return kept


@dataclass(frozen=True, slots=True)
class _Batches:
    """Batches from all over the data, as many for each process."""

    collate: Callable[[list[int]], dict[str, Any]]
    indices: np.ndarray[Any, Any]
    batch_size: int
    is_shared: bool
    """Whether all processes read the same."""

    def until(self, num_tokens: int) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield batches until about so many tokens were read by all processes together.

        With each goes the number of its first rows that count. Other processes have the rest.
        """
        own, num_own = self._own()
        num_batches = math.ceil(len(own) / self.batch_size)
        number = 0
        while number < num_batches:
            chosen = own[number * self.batch_size : (number + 1) * self.batch_size]
            batch = self._collated(chosen)
            if number == 0:
                per_round = max(self._per_round(len(batch["labels"])), 1)
                num_batches = min(num_batches, max(1, math.ceil(num_tokens / per_round)))
            yield batch, max(num_own - number * self.batch_size, 0)
            number += 1

    def _own(self) -> tuple[np.ndarray[Any, Any], int]:
        """Return this process's samples, and how many of the first are no other process's."""
        state = PartialState()
        order = np.random.default_rng(0).permutation(self.indices)
        if self.is_shared or not len(order):
            return order, len(order)
        # as many for each process, since a sharded model's forward waits for all of them
        each = -(-len(order) // state.num_processes)
        start = state.process_index * each
        own = order.take(range(start, start + each), mode="wrap")
        return own, min(max(len(order) - start, 0), each)

    def _collated(self, chosen: np.ndarray[Any, Any]) -> dict[str, Any]:
        """Make a batch. What is wrong in one process is raised in all of them."""
        batch, problem = {}, None
        try:
            batch = self.collate([int(index) for index in chosen])
        except VlsiCacheError as error:
            problem = error
        raise_together(problem)
        return batch

    def _per_round(self, num_tokens: int) -> int:
        """Count the tokens of one batch of every process."""
        if self.is_shared:
            return num_tokens
        found = torch.tensor(num_tokens, device=PartialState().device)
        return int(reduce(found, "sum"))
