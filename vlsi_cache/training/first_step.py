"""The learning rate that suits a first step: by Polyak's rule, from one measured gradient.

Adam's first step moves every weight by the rate, against the sign of its gradient. To first order
the loss then falls by rate × ‖gradient‖₁. Polyak's step size (Introduction to Optimization, 1987)
is the one that would take the loss to its least value, here 0: rate = loss / ‖gradient‖₁. Larger
models have a larger norm, and so have noisier batches, so the rate follows size and batch by
itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import nn

from vlsi_cache.training.module import StageModule
from vlsi_cache.training.processes import from_main_process

__all__ = ["first_step_rate", "spread"]

logger = logging.getLogger(__name__)

_HIGHEST: Final = 1e-3
"""Adam's own default (Kingma and Ba, 2015): untrained models would get a higher rate."""


def first_step_rate(
    module: StageModule,
    measured: Iterable[nn.Parameter],
    batches: Sequence[dict[str, Any]],
    device: torch.device,
    *,
    autocast: bool,
) -> float:
    """Return the loss of some batches by the L1 norm of its gradient, at most 1e-3.

    Args:
        module: what will train. Its gradients are empty afterwards.
        measured: the parameters whose gradient counts.
        batches: the batches of one optimizer step.
        device: where they go.
        autocast: whether the forward runs in bfloat16 autocast.
    """
    count = sum(len(batch["labels"]) for batch in batches)
    total = 0.0
    for batch in batches:
        inputs = send_to_device(batch, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            loss = module(**inputs, num_items_in_batch=count)["loss"]
        loss.backward()
        total += float(loss.detach())
    gradients = [parameter.grad for parameter in measured if parameter.grad is not None]
    norm = sum(float(gradient.abs().sum(dtype=torch.float32)) for gradient in gradients)
    module.zero_grad(set_to_none=True)
    module.collect()  # what the forward observed is no step's
    rate = min(total / norm, _HIGHEST) if norm > 0 else _HIGHEST
    return from_main_process(float(f"{rate:.2g}"))


def spread(indices: np.ndarray[Any, Any], count: int) -> list[int]:
    """Choose ``count`` of the indices, or all, evenly over the data."""
    chosen = np.linspace(0, len(indices) - 1, min(count, len(indices))).astype(int)
    return [int(index) for index in indices[chosen]]
