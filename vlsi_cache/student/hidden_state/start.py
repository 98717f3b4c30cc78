"""The closed-form start of a hidden state's map: ridge regression towards the recorded signs.

The direction that signs decode to is unbiased, so the least squares towards it are those towards
the teacher's own state, with more noise. More tokens make up for the noise.

N response tokens, D the student's hidden size, E the teacher's, b signs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

import torch
from accelerate import PartialState
from accelerate.utils import send_to_device
from torch import Tensor

from vlsi_cache.phases import phase
from vlsi_cache.student.hidden_state.target import HiddenTarget
from vlsi_cache.training import StageModule
from vlsi_cache.training.processes import gathered_numbers
from vlsi_cache.training.ridge import RidgeMoments
from vlsi_cache.training.samples.first_batches import FirstBatches
from vlsi_cache.training.sharding import like, reshard

__all__ = ["num_start_tokens", "start_map"]

logger = logging.getLogger(__name__)

_TOKENS_PER_DIMENSION: Final = 16
"""Response tokens that are read, by D, where a token has a sign for each of the E numbers. Where it
has fewer, as many more are read: the noise of a decoded direction grows with E / b."""


def num_start_tokens(size: int, hidden: HiddenTarget) -> int:
    """Return about how many response tokens the start reads, if there are so many."""
    signs = hidden.signs
    return round(_TOKENS_PER_DIMENSION * size * max(1.0, signs.width / signs.bits))


@torch.no_grad()
def start_map(
    module: StageModule, hidden: HiddenTarget, batches: FirstBatches, *, autocast: bool
) -> None:
    """Set the map to the ridge regression of recorded directions on the student's.

    Every process reads as many batches as the others, and all get one map.

    Args:
        module: what trains, which reads the student. Its weights may be sharded.
        hidden: its part with the map.
        batches: batches of the stage.
        autocast: whether forwards run in bfloat16 autocast.
    """
    if hidden.map is None:
        return
    weight, signs = hidden.map.weight, hidden.signs
    size, device = weight.shape[1], PartialState().device
    moments, num_tokens = RidgeMoments(size, device, signs.width), 0
    module.eval()
    with phase("reading states, for the hidden state's closed-form start"):
        for batch, num_own in batches.until(num_start_tokens(size, hidden)):
            own = send_to_device(_first_rows(batch, num_own), device)
            inputs = send_to_device(batch["inputs"], device)
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                states, _ = module.read((hidden.block,), inputs, own["positions"])
            read = states[hidden.block].at(own["positions"]).to(device)
            num_tokens += _add_finite(moments, hidden, read, own)
    module.train()
    with phase("solving for the hidden state's closed-form start"):
        moments.reduce()
        num_tokens = sum(gathered_numbers(num_tokens))
        reshard(module)  # so that the weight is the one that trains
        weight = hidden.map.weight
        if num_tokens:
            found = moments.linear(_penalty(hidden))
            weight.copy_(like(found.to(weight.device), weight))
    logger.info(
        "the hidden state's map begins at the closed form, fitted to %s tokens", f"{num_tokens:,}"
    )


def _penalty(hidden: HiddenTarget) -> float:
    """Return λ for states of length 1: the noise of a token over what a map may reach.

    It is that of a Gaussian prior. A decoded direction has a squared length of πE / 2b, nearly all
    of it noise. A map that reads half of the teacher's state has one of ½.
    """
    return float(torch.pi) * hidden.signs.width / hidden.signs.bits


def _first_rows(batch: Mapping[str, Any], num_rows: int) -> dict[str, Tensor]:
    """Return what is known of the tokens of a batch's first rows."""
    own = batch["token_samples"] < num_rows
    return {name: batch[name][own] for name in ("positions", "hidden_signs", "rotations")}


def _add_finite(
    moments: RidgeMoments, hidden: HiddenTarget, states: Tensor, own: Mapping[str, Tensor]
) -> int:
    """Add the tokens whose states are finite, and return how many they are."""
    finite = torch.isfinite(states).all(1)
    wanted = hidden.signs.decode(own["hidden_signs"][finite], own["rotations"][finite])
    moments.add(torch.nn.functional.normalize(states[finite].float(), dim=-1), wanted)
    return int(finite.sum())
