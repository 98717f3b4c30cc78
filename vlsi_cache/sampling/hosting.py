"""Copies between host and device that wait for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["PendingCopy", "begin_copy", "begin_send"]


@dataclass(frozen=True, slots=True)
class PendingCopy:
    """Tensors that may be on their way from the device. ``begin_copy`` makes it."""

    parts: Sequence[Tensor]
    """The tensors, on the host."""
    copied: torch.cuda.Event | None = None
    """Comes when the parts hold their values. None if they do already."""

    def arrays(self) -> list[NDArray[Any]]:
        """Wait for the tensors, and return them as arrays."""
        parts = [part.numpy() for part in self.parts]
        if self.copied is None:
            return parts
        self.copied.synchronize()
        return [part.copy() for part in parts]  # the pinned memory serves the next batch


def begin_copy(parts: Sequence[Tensor]) -> PendingCopy:
    """Begin to copy tensors of one device to the host.

    CUDA's copies into pinned memory wait for nothing. What is queued later does not delay them.
    """
    device = parts[0].device
    if device.type != "cuda":
        return PendingCopy([part.cpu() for part in parts])
    hosted = []
    for part in parts:
        host = torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
        hosted.append(host.copy_(part, non_blocking=True))
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(device))
    return PendingCopy(hosted, copied)


def begin_send(values: Tensor, device: torch.device) -> Tensor:
    """Begin to send values to a device. A copy from other memory would wait for what it does."""
    pinned = values.pin_memory() if device.type == "cuda" else values
    return pinned.to(device, non_blocking=True)
