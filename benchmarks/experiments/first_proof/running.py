"""One run of one arm: trained through the product, scored, and written down."""

from __future__ import annotations

import gc
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from harness import in_fresh_process, machine, peak_extra_bytes, written_once

from experiments.first_proof.arms import ARMS, Arm
from experiments.first_proof.online import interact_online
from experiments.first_proof.scoring import HeldOut, Watch
from experiments.first_proof.setting import CACHES, Plan, Rates, Setting
from vlsi_cache import open_cache, train_student

__all__ = ["best_rates", "measure_cost", "run_arm", "search_rates", "searched"]

FINETUNING_RATES = (1e-4, 3e-4, 1e-3, 2e-3)
LATER_RATES = (3e-4, 1e-4, 1e-3)
"""Rates of the fine-tuning after distillation. The first serves while the other is searched."""
COST_STEPS = 8
"""Steps of a cost run. The first is not timed."""


def run_arm(setting: Setting, arm: Arm, seed: int, rates: Rates) -> dict[str, Any]:
    """Train, and score on held-out conversations. A run that is written down is not made again."""
    path = setting.results / "runs" / f"{arm.name}-seed{seed}.json"
    run = written_once(path, lambda: _apart(setting, _run, arm.name, seed, rates, "held-out"))
    if Rates(**run["rates"]) != rates:
        raise click.ClickException(f"{path} was made at other rates than {rates}. Remove it.")
    if run["interaction"] != arm.interaction:
        raise click.ClickException(f"{path} was made by an arm that has changed. Remove it.")
    return run


def search_rates(setting: Setting, family: str) -> list[dict[str, Any]]:
    """Make short runs of a family's first arm that reads a cache, scored on validation.

    The rate of the distillation is searched first. With the best of these, the rate of the
    fine-tuning after it is searched.
    """
    if family == "fine-tuning":
        return [_tried(setting, family, Rates(rate, rate)) for rate in FINETUNING_RATES]
    first, *others = LATER_RATES
    found = [_tried(setting, family, Rates(rate, first)) for rate in searched(family).rates]
    best = _best(found).interaction
    return found + [_tried(setting, family, Rates(best, rate)) for rate in others]


def best_rates(setting: Setting, family: str) -> Rates:
    """Return the rates of the search with the least loss on the labels."""
    return _best(search_rates(setting, family))


def _best(runs: Sequence[dict[str, Any]]) -> Rates:
    return Rates(**min(runs, key=lambda run: run["final"]["label_loss"])["rates"])


def _tried(setting: Setting, family: str, rates: Rates) -> dict[str, Any]:
    path = setting.results / "search" / f"{family}-{rates}.json"
    name = searched(family).name
    return written_once(path, lambda: _apart(setting, _run, name, 1000, rates, "validation"))


def searched(family: str) -> Arm:
    """Return the arm whose runs stand for the family's: the first without a teacher in memory."""
    arms = (arm for arm in ARMS.values() if arm.family == family)
    return next(arm for arm in arms if arm.source != "teacher")


def measure_cost(setting: Setting, arm: Arm) -> dict[str, Any]:
    """Measure the step and the peak memory of an arm's distillation alone, or of fine-tuning."""
    path = setting.results / "costs" / f"{arm.name}.json"
    return written_once(path, lambda: _apart(setting, _cost, arm.name))


def _apart(setting: Setting, function: Callable[..., dict[str, Any]], *arguments: Any) -> Any:
    """Call the function in a fresh process, or in this one for a smoke."""
    if setting.made_up:
        return function(setting, *arguments)
    return in_fresh_process(function, setting, *arguments)


def _run(setting: Setting, name: str, seed: int, rates: Rates, split: str) -> dict[str, Any]:
    arm = ARMS[name]
    began = time.monotonic()
    searching = split == "validation"
    held_out = _held_out(setting, split)
    some = held_out if searching else _held_out(setting, split, setting.curve_samples)
    watch = Watch(some, every=max(setting.interaction_steps // 4, 1))
    folder = setting.folder / "runs" / f"{name}-{seed}-{rates}"
    length = setting.search_length if searching else 1.0
    student = _train(setting, arm, _plan(arm, folder, rates, seed, length), watch)
    final = held_out.score(setting.backbone(student, "student").decoder)
    shutil.rmtree(folder)
    return {
        "arm": name,
        "seed": seed,
        "rates": {"interaction": rates.interaction, "finetuning": rates.finetuning},
        "interaction": dict(arm.interaction),
        "final": final,
        "curve": watch.curve,
        "wall_seconds": time.monotonic() - began,
        "versions": {"python": platform.python_version(), "transformers": transformers.__version__}
        | machine(torch.device("cpu")),
    }


def _plan(arm: Arm, folder: Path, rates: Rates, seed: int, length: float) -> Plan:
    return Plan(
        folder, arm.interaction, rates, seed, arm.cache or "cache", length=length, stages=arm.stages
    )


def _train(setting: Setting, arm: Arm, plan: Plan, watch: Watch) -> Path:
    """Train a student, and return its folder."""
    shutil.rmtree(plan.output, ignore_errors=True)
    recipe = setting.recipe(plan)
    if arm.source == "teacher":
        distilled = interact_online(recipe, (watch,))
        gc.collect()  # teacher and adapted student refer to themselves
        if "finetuning" not in plan.stages:
            return distilled
        section = recipe.student.model_copy(update={"model": str(distilled), "verbalizers": None})
        recipe = recipe.model_copy(update={"student": section, "stages": ["finetuning"]})
    return train_student(recipe, (watch,))


@lru_cache(maxsize=4)
def _held_out(setting: Setting, split: str, limit: int | None = None) -> HeldOut:
    kept = setting.folder / f"teacher-on-{split}-{limit or 'all'}.safetensors"
    teacher = setting.backbone(setting.teacher, "teacher")
    return HeldOut.read(teacher, setting.data(split), limit, kept)


def _cost(setting: Setting, name: str) -> dict[str, Any]:
    arm = ARMS[name]
    watch = Watch(None, every=1)
    folder = setting.folder / "runs" / f"cost-{name}"
    tunes = arm.source == "labels"
    length = COST_STEPS / (setting.num_steps if tunes else setting.interaction_steps)
    whole = _plan(arm, folder, Rates(1e-5, 1e-5), 0, length)
    distillation = replace(whole, stages=arm.stages[:2])
    peak = peak_extra_bytes(lambda: _train(setting, arm, distillation, watch), torch.device("cpu"))
    shutil.rmtree(folder)
    (seconds,) = watch.seconds.values()
    cache = open_cache(setting.folder / arm.source) if arm.source in CACHES else None
    return {
        "arm": name,
        "step_seconds": statistics.median(seconds[1:]),
        "peak_bytes": peak,
        "cache_bytes": cache.size_bytes() if cache else None,
        "versions": machine(torch.device("cpu")),
    }
