"""Clocks and memory meters that compare contenders within one run."""

from __future__ import annotations

import multiprocessing
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

__all__ = [
    "device_of",
    "in_fresh_process",
    "machine",
    "median_seconds",
    "peak_extra_bytes",
    "wait_for",
]

Step = Callable[[], object]

_CLEAR = Path("/proc/self/clear_refs")


def device_of(name: str) -> torch.device:
    """The named device; ``auto`` is the accelerator if there is one."""
    if name != "auto":
        return torch.device(name)
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def machine(device: torch.device) -> dict[str, Any]:
    """What figures depend on and cannot be read off them."""
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "device": f"{device.type} {on or platform.machine()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def median_seconds(
    contenders: Mapping[str, Step], rounds: int, device: torch.device
) -> dict[str, float]:
    """Median time of each contender; they take turns, so that a slow spell meets them all."""
    for step in contenders.values():
        step()
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, step in contenders.items():
            wait_for(device)
            start = time.perf_counter()
            step()
            wait_for(device)
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def peak_extra_bytes(step: Step, device: torch.device) -> int:
    """Most memory that ``step`` holds beyond what is there when it starts.

    On the CPU it is the process's high-water mark, which Linux sets back on demand; elsewhere it
    only rises. Ask in a fresh process: memory that an earlier step left to the allocator would be
    used again unseen.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if _CLEAR.exists():
        _CLEAR.write_text("5")  # sets the mark back to what is resident now
    before = _high_water_bytes()
    step()
    return max(_high_water_bytes() - before, 1)


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What ``function`` returns in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def _high_water_bytes() -> int:
    if _CLEAR.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found is not None
        return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
