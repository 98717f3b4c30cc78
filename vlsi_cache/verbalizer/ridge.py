"""The closed-form start of stage one: ridge regression from each tap to the model's last state.

The linear map that is nearest to the last state, in least squares, is known without training. It
reads a tap far better than the logit lens does, and costs one pass over some of the data. Belrose
et al. (Eliciting Latent Predictions from Transformers with the Tuned Lens, 2023) train the same map
by gradient; Jump to Conclusions (Din et al., 2023) fits it as here.

Shapes: N response tokens, D hidden size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor

from vlsi_cache.models import Backbone, TapState, is_split, run_backbone
from vlsi_cache.phases import phase
from vlsi_cache.training.processes import own_part
from vlsi_cache.training.ridge import RidgeMoments
from vlsi_cache.training.samples.first_batches import FirstBatches
from vlsi_cache.training.sharding import like
from vlsi_cache.verbalizer.bank import VerbalizerBank

__all__ = ["start_by_ridge"]

logger = logging.getLogger(__name__)

_TOKENS_PER_DIMENSION: Final = 16
"""Response tokens that are read, by D. Twice as many brought 0.05 nats at most on SmolLM2-135M."""


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
    moments = {tap: RidgeMoments(size, bank.devices[str(tap)]) for tap in taps}
    num_tokens, shared = 0, is_split(decoder.model)
    batches = FirstBatches(collate, indices, batch_size, shared)
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


def _solve(moments: Mapping[int, RidgeMoments], bank: VerbalizerBank) -> None:
    """Set the maps of the bank, from the moments of all processes."""
    for tap, found in moments.items():
        found.reduce()
        change = bank.linear_change(tap)
        change.copy_(like(found.change().to(change.device), change))


def _add_finite(
    moments: Mapping[int, RidgeMoments], own: Mapping[int, Tensor], last: Tensor
) -> int:
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
