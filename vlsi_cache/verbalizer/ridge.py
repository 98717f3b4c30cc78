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
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce, send_to_device
from torch import Tensor

from vlsi_cache.models import Backbone, TapState, run_backbone
from vlsi_cache.phases import phase
from vlsi_cache.training.sharding import like
from vlsi_cache.verbalizer.bank import VerbalizerBank

__all__ = ["TapMoments", "start_by_ridge"]

logger = logging.getLogger(__name__)

_TOKENS_PER_DIMENSION: Final = 16
"""Response tokens that are read, by D. Twice as many bring 0.05 nats at most (docs/results.md)."""
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

    Every process reads its slice of the samples, as many batches as the others.

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
    moments = {tap: TapMoments(size, backbone.device) for tap in bank.taps if tap != last_block}
    num_tokens = 0
    with phase("reading states, for the verbalizers' closed-form start"):
        for batch in _batches(collate, indices, batch_size, _TOKENS_PER_DIMENSION * size):
            inputs, positions = batch["inputs"], batch["positions"]
            inputs, positions = send_to_device((inputs, positions), backbone.device)
            states, _ = read((*moments, last_block), inputs, positions)
            own = {tap: state.hidden.flatten(0, 1)[positions] for tap, state in states.items()}
            finite = torch.stack([torch.isfinite(each).all(1) for each in own.values()]).all(0)
            num_tokens += int(finite.sum())
            for tap, found in moments.items():
                found.add(own[tap][finite], own[last_block][finite])
    with phase("solving for the verbalizers' closed-form start"):
        for tap, found in moments.items():
            found.own, found.cross = reduce(found.own, "sum"), reduce(found.cross, "sum")
            change = bank.linear_change(tap)
            change.copy_(like(found.change(), change))
    logger.info("verbalizers begin at the closed form, fitted to %s tokens", f"{num_tokens:,}")


def _batches(
    collate: Callable[[list[int]], dict[str, Any]],
    indices: np.ndarray[Any, Any],
    batch_size: int,
    num_tokens: int,
) -> Iterator[dict[str, Any]]:
    """Yield batches from all over the data, until about so many tokens were read."""
    state = PartialState()
    order = np.random.default_rng(0).permutation(indices)
    # as many for each process, since a sharded model's forward waits for all of them
    each = max(1, len(order) // state.num_processes)
    own = np.resize(order[state.process_index * each :], each) if len(order) else order
    num_batches = math.ceil(len(own) / batch_size)
    number = 0
    while number < num_batches:
        chosen = own[number * batch_size : (number + 1) * batch_size]
        batch = collate([int(index) for index in chosen])
        if number == 0:
            found = torch.tensor(len(batch["labels"]), device=state.device)
            per_round = int(reduce(found, "sum"))
            num_batches = min(num_batches, max(1, math.ceil(num_tokens / max(per_round, 1))))
        yield batch
        number += 1
