"""Times by the device's own events, and peaks of its memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from harness import wait_for

__all__ = ["Measured", "measured", "released"]

Step = Callable[[], object]
Measured = dict[str, Any]
"""``seconds`` and ``peak_bytes`` of a contender. A CPU has no peak, and says null."""


def measured(
    contenders: Mapping[str, Step], rounds: int, device: torch.device
) -> dict[str, Measured]:
    """Measure each contender's median time and its peak.

    The contenders take turns, so that a slow spell of the machine slows them all. The first run of
    each is not timed, and gives its peak.

    Args:
        contenders: what is measured, by name.
        rounds: timed runs of each.
        device: the device of the tensors.
    """
    peaks = {name: _peak(step, device) for name, step in contenders.items()}
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, step in contenders.items():
            taken[name].append(_seconds(step, device))
    return {
        name: {"seconds": median(taken[name]), "peak_bytes": peaks[name]} for name in contenders
    }


def released(device: torch.device) -> None:
    """Give back the memory that nothing holds any more."""
    import gc

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _peak(step: Step, device: torch.device) -> int | None:
    """Run a step, and return the most memory of all tensors while it ran."""
    if device.type != "cuda":
        step()
        return None
    released(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def _seconds(step: Step, device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        step()
        wait_for(device)
        return time.perf_counter() - start
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begun.record()
    step()
    ended.record()
    torch.cuda.synchronize(device)
    return begun.elapsed_time(ended) / 1e3
