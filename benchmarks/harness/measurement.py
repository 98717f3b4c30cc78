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
    "seconds",
    "wait_for",
]

_PRELOADED = ("torch", "transformers", "vlsi_cache.student", "vlsi_cache.teacher")
"""Libraries that most scripts import, and that no script's own folder is needed for."""

Step = Callable[[], object]

_CPU = torch.device("cpu")
_CLEAR = Path("/proc/self/clear_refs")


def device_of(name: str) -> torch.device:
    """Return the named device. ``auto`` is the accelerator if there is one, else the CPU."""
    if name != "auto":
        return torch.device(name)
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def machine(device: torch.device) -> dict[str, Any]:
    """Describe the machine and the versions that figures depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "device": f"{device.type} {name or platform.machine()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def seconds(step: Step, device: torch.device = _CPU) -> float:
    """Time a step, with the work that it gives the device."""
    wait_for(device)
    start = time.perf_counter()
    step()
    wait_for(device)
    return time.perf_counter() - start


def median_seconds(
    contenders: Mapping[str, Step], rounds: int, device: torch.device
) -> dict[str, float]:
    """Return the median time of each contender.

    The contenders take turns, so that a slow spell of the machine slows them all.
    """
    for step in contenders.values():
        step()
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, step in contenders.items():
            taken[name].append(seconds(step, device))
    return {name: statistics.median(times) for name, times in taken.items()}


def peak_extra_bytes(step: Step, device: torch.device) -> int:
    """Return the most memory that ``step`` holds beyond what is there when it starts.

    On the CPU it is the high-water mark of the process. Linux lowers the mark on demand, and on
    other systems it only rises. Measure in a fresh process: a step could use memory again that an
    earlier step had returned to the allocator, and the mark would not show it.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if _CLEAR.exists():
        _CLEAR.write_text("5")  # lowers the mark to what is resident now
    before = _high_water_bytes()
    step()
    return max(_high_water_bytes() - before, 1)


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``function`` in a process of its own, and return what it returns.

    Without a GPU it is forked from a process that has imported the libraries, and has done nothing
    else. What an import asks of a GPU would not outlive a fork, so a GPU takes a fresh interpreter.
    """
    method = "spawn" if torch.accelerator.is_available() else "forkserver"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([*_PRELOADED])
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
    """Wait until the device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
