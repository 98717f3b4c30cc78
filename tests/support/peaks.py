"""The most memory that torch has allocated at once while something ran."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["peak_bytes"]


def peak_bytes(function: Callable[[], object]) -> int:
    """Run a function, and return the peak of torch's own allocations on the CPU.

    The allocator reports each of them to torch's profiler. Unlike the memory of the process, their
    sum is the same in every run. Loading by threads would escape the profiler.
    """
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        function()
    assert run.profiler is not None
    results = run.profiler.kineto_results
    assert results is not None
    events = [event for event in results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        assert event.device_type() == torch.autograd.DeviceType.CPU
        live += event.nbytes()
        peak = max(peak, live)
    return peak
