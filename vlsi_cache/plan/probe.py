"""``probe_rates``: operations per second of each stage, measured on a short model of real width."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from statistics import median
from typing import Final

import torch
from torch.utils.flop_counter import FlopCounterMode

from vlsi_cache.phases import phase
from vlsi_cache.plan.rehearsing.rehearsal import Setting, trains_weights
from vlsi_cache.plan.rehearsing.sketch import Sketch
from vlsi_cache.plan.rehearsing.steps import Batch, PlannedStageName, make_step

__all__ = ["probe_rate"]

_BLOCKS: Final = 2
_ROUNDS: Final = 3


def probe_rate(
    setting: Setting, stage: PlannedStageName, sketch: Sketch, batch: Batch, device: torch.device
) -> float:
    """Run a stage's step on a model of two blocks and random weights, and time it.

    Args:
        setting: recipe, device and processes.
        stage: name of the stage.
        sketch: its model.
        batch: the usual batch. A CPU gets one sample of it.
        device: the device that is there.

    Returns:
        Floating-point operations per second.

    Raises:
        ModelError: the model cannot be built from its configuration.
    """
    if device.type == "cpu":
        batch = Batch(1, batch.length, max(batch.num_responses // batch.num_samples, 1))
    with phase(f"probing {stage}"), torch.random.fork_rng(devices=[]):
        with device:
            trains = trains_weights(setting.recipe, stage)
            backbone = sketch.build(device, trains=trains, num_blocks=_BLOCKS)
        step = make_step(setting.recipe, stage, backbone, _BLOCKS, setting.teacher_size)
        with FlopCounterMode(display=False) as counter:
            step.run(batch)
        seconds = [_seconds(step.run, batch, device) for _ in range(_ROUNDS)]
        del step, backbone
        gc.collect()
    return float(counter.get_total_flops()) / median(seconds)


def _seconds(run: Callable[[Batch], None], batch: Batch, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    run(batch)
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
