"""One run of one arm: trained through the product, scored, and written down."""

from __future__ import annotations

import gc
import json
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from measurement import in_fresh_process, machine, peak_extra_bytes

from proof.arms import ARMS, Arm
from proof.online import interact_online
from proof.scoring import HeldOut, Watch
from proof.setting import RECORDS, Rates, Setting
from vlsi_cache import open_cache
from vlsi_cache.student.train import train_student

__all__ = ["best_rates", "measure_cost", "run_arm", "search_rates", "searched"]

FINETUNING_RATES = (1e-4, 3e-4, 1e-3, 2e-3)
LATER_RATES = (3e-4, 1e-4, 1e-3)
"""Of fine-tuning after distillation; the distillation's own rate is looked for with the first."""
COST_STEPS = 8
"""Of which the first is left out."""
STAGES = ("verbalization", "interaction", "finetuning")


def run_arm(setting: Setting, arm: Arm, seed: int, rates: Rates) -> dict[str, Any]:
    """Train and score on held-out conversations; a run that is written down is not made again."""
    path = setting.results / "runs" / f"{arm.name}-seed{seed}.json"
    run = _once(path, lambda: _apart(setting, _run, setting, arm.name, seed, rates, "held-out"))
    if Rates(**run["rates"]) != rates:
        raise click.ClickException(f"{path} was made at other rates than {rates}: remove it")
    if run["interaction"] != arm.interaction:
        raise click.ClickException(f"{path} was made by an arm that is another now: remove it")
    return run


def search_rates(setting: Setting, family: str) -> list[dict[str, Any]]:
    """Short runs of a family's first arm that reads a cache, scored on validation.

    First the rate of the distillation, then, with the best of these, that of the fine-tuning after
    it.
    """
    if family == "fine-tuning":
        return [_tried(setting, family, Rates(rate, rate)) for rate in FINETUNING_RATES]
    first, *others = LATER_RATES
    found = [_tried(setting, family, Rates(rate, first)) for rate in searched(family).rates]
    best = _best(found).interaction
    return found + [_tried(setting, family, Rates(best, rate)) for rate in others]


def best_rates(setting: Setting, family: str) -> Rates:
    """Of the search: those of the least loss on the labels."""
    return _best(search_rates(setting, family))


def _best(runs: Sequence[dict[str, Any]]) -> Rates:
    return Rates(**min(runs, key=lambda run: run["final"]["label_loss"])["rates"])


def _tried(setting: Setting, family: str, rates: Rates) -> dict[str, Any]:
    path = setting.results / "search" / f"{family}-{rates}.json"
    name = searched(family).name
    return _once(path, lambda: _apart(setting, _run, setting, name, 1000, rates, "validation"))


def searched(family: str) -> Arm:
    """Whose runs stand for those of the family: none has a teacher to wait for."""
    arms = (arm for arm in ARMS.values() if arm.family == family)
    return next(arm for arm in arms if arm.source != "teacher")


def measure_cost(setting: Setting, arm: Arm) -> dict[str, Any]:
    """Seconds of a step and peak memory of an arm's distillation alone, or of fine-tuning."""
    path = setting.results / "costs" / f"{arm.name}.json"
    return _once(path, lambda: _apart(setting, _cost, setting, arm.name))


def _once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    if not path.exists():
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _apart(setting: Setting, function: Callable[..., dict[str, Any]], *arguments: Any) -> Any:
    return function(*arguments) if setting.made_up else in_fresh_process(function, *arguments)


def _run(setting: Setting, name: str, seed: int, rates: Rates, part: str) -> dict[str, Any]:
    arm, began = ARMS[name], time.monotonic()
    searching = part == "validation"
    held_out = _held_out(setting, part)
    some = held_out if searching else _held_out(setting, part, setting.curve_samples)
    watch = Watch(some, every=max(setting.interaction_steps // 4, 1))
    folder = setting.folder / "runs" / f"{name}-{seed}-{rates}"
    share = setting.search_share if searching else 1.0
    student = _train(setting, arm, seed, rates, folder, watch, share)
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


def _train(
    setting: Setting,
    arm: Arm,
    seed: int,
    rates: Rates,
    folder: Path,
    watch: Watch,
    share: float,
    *,
    distils_only: bool = False,
) -> Path:
    """Folder of the finished student."""
    shutil.rmtree(folder, ignore_errors=True)
    stages = STAGES[:2] if distils_only else STAGES
    recipe = setting.recipe(
        arm.interaction,
        folder,
        rates,
        seed,
        record=arm.record or "cache",
        share=share,
        stages=STAGES[2:] if arm.source == "labels" else stages,
    )
    if arm.source == "teacher":
        taught = interact_online(recipe, (watch,))
        gc.collect()  # teacher and adapted student refer to themselves
        if distils_only:
            return taught
        student = recipe.student.model_copy(update={"model": str(taught), "verbalizers": None})
        recipe = recipe.model_copy(update={"student": student, "stages": ["finetuning"]})
    return train_student(recipe, (watch,))


@lru_cache(maxsize=4)
def _held_out(setting: Setting, part: str, limit: int | None = None) -> HeldOut:
    kept = setting.folder / f"teacher-on-{part}-{limit or 'all'}.safetensors"
    teacher = setting.backbone(setting.teacher, "teacher")
    return HeldOut.read(teacher, setting.data(part), limit, kept)


def _cost(setting: Setting, name: str) -> dict[str, Any]:
    arm, watch = ARMS[name], Watch(None, every=1)
    folder = setting.folder / "runs" / f"cost-{name}"
    tunes = arm.source == "labels"
    share = COST_STEPS / (setting.num_steps if tunes else setting.interaction_steps)

    def train() -> None:
        _train(setting, arm, 0, Rates(1e-5, 1e-5), folder, watch, share, distils_only=True)

    peak = peak_extra_bytes(train, torch.device("cpu"))
    shutil.rmtree(folder)
    (seconds,) = watch.seconds.values()
    reads_cache = arm.source in RECORDS
    return {
        "arm": name,
        "step_seconds": statistics.median(seconds[1:]),
        "peak_bytes": peak,
        "cache_bytes": open_cache(setting.folder / arm.source).size_bytes()
        if reads_cache
        else None,
        "versions": machine(torch.device("cpu")),
    }
