"""The pieces of a micro-batch: as many in every process, and one gradient for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from vlsi_cache.training.samples.loader import FURTHER

__all__ = ["align_pieces", "num_tokens", "pieces_of", "without_sync"]


def pieces_of(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the pieces of a micro-batch: itself, unless a bound has divided it."""
    return [{name: value for name, value in batch.items() if name != FURTHER}, *_further(batch)]


def num_tokens(batch: dict[str, Any]) -> int:
    """Count the response tokens of a micro-batch that weigh in its step's loss."""
    return sum(len(piece["labels"]) * piece["weight"] for piece in pieces_of(batch))


def align_pieces(
    batches: Sequence[dict[str, Any]], accelerator: Accelerator, device: torch.device
) -> None:
    """Give the micro-batches of a step as many pieces as they have in the other processes.

    Processes that share a model wait for one another in every pass. A spare piece has weight 0.
    """
    own = torch.tensor([len(_further(batch)) for batch in batches], device=device)
    most = accelerator.gather(own[None]).max(0).values.tolist()
    for batch, count in zip(batches, most, strict=True):
        further = _further(batch)
        least = min(pieces_of(batch), key=lambda piece: piece["inputs"]["input_ids"].numel())
        if count:
            batch[FURTHER] = [*further, *[{**least, "weight": 0}] * (count - len(further))]


def without_sync(accelerator: Accelerator, model: nn.Module) -> AbstractContextManager[object]:
    """Keep DDP from exchanging gradients before the last piece. A sharded model has to."""
    if accelerator.distributed_type in (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        context: AbstractContextManager[object] = accelerator.no_sync(model)
        return context
    return nullcontext()


def _further(batch: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = batch.get(FURTHER, [])
    return found
