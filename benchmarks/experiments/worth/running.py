"""One run of one arm: distilled and fine-tuned by the product, scored, and written down."""

from __future__ import annotations

import gc
import json
import shutil
import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from harness import in_fresh_process, machine, written_once
from material import assets
from transformers import TrainerCallback

from experiments.first_proof.narrow import kept_channels
from experiments.first_proof.scoring import HeldOut, Watch
from experiments.first_proof.setting import Plan, Rates, Setting
from experiments.worth.added_losses import HiddenCosine, KeptChannels, LabelsToo
from experiments.worth.arms import ARMS, LORA_RATE, Arm
from experiments.worth.exits import Audit, score_exits
from vlsi_cache import train_student
from vlsi_cache.recipe import Recipe
from vlsi_cache.verbalizer import load_verbalizers

__all__ = ["results_of", "run_arm"]

RATES = Rates(LORA_RATE, 3e-4)
"""Those of the first proof."""
CURVE_POINTS = 4
FIRST = ("verbalization", "interaction")
EXITS: dict[str, dict[str, Any]] = {
    "verbalizer": {"structure": "mlp"},
    "verbalization": {"target": "final"},
}
"""Exits that are trained afterwards: one linear map per tap, from the closed form, at the default
rate. At a rate of 1e-3 they end worse than the closed form."""


def results_of(setting: Setting) -> Path:
    """Return the folder of the runs' results. Those of a smoke are not committed."""
    return setting.folder / "worth" if setting.made_up else Path(__file__).parent / "results"


def run_arm(setting: Setting, arm: Arm, seed: int, *, only_distilled: bool = False) -> None:
    """Make what an arm lacks: the distilled student's scores, its exits, and each fine-tuning.

    Each is written down by itself. A student is kept while something of it is missing.
    """
    folder = results_of(setting) / f"{arm.name}-seed{seed}"
    parts = ["distilled"]
    if not only_distilled:
        parts += [*(["exits"] if arm.exits else []), *arm.tunings]
    for part in parts:

        def make(part: str = part) -> dict[str, Any]:
            if setting.made_up:
                return _part(setting, arm.name, seed, part)
            found = in_fresh_process(_part, setting, arm.name, seed, part)
            return dict(found)

        run = written_once(folder / f"{part}.json", make)
        if run["settings"] != json.loads(json.dumps(_settings(setting, arm, part))):
            raise SystemExit(f"{folder / part}.json was made by other settings. Remove it.")
    shutil.rmtree(_runs(setting, arm, seed), ignore_errors=True)


def _runs(setting: Setting, arm: Arm, seed: int) -> Path:
    return setting.folder / "worth-runs" / f"{arm.name}-{seed}"


def _settings(setting: Setting, arm: Arm, part: str) -> dict[str, Any]:
    found: dict[str, Any] = {"interaction": arm.settings(setting.last_tap)}
    if arm.starts_random:
        found["starts_random"] = True
    if arm.is_narrow:
        found["is_narrow"] = True
    if arm.hidden_cosine:
        found["hidden_cosine"] = True
    if arm.compares_kept:
        found["compares_kept"] = True
    if arm.label_weight:
        found["label_weight"] = arm.label_weight
    if arm.cache != "cache":
        found["cache"] = arm.cache
    if arm.length != 1.0:
        found["length"] = arm.length
    if part == "exits":
        return {**found, "exits": dict(EXITS)}
    return {**found, "finetuning": dict(arm.tunings[part])} if part != "distilled" else found


def _part(setting: Setting, name: str, seed: int, part: str) -> dict[str, Any]:
    arm = ARMS[name]
    began = time.monotonic()
    folder = _runs(setting, arm, seed)
    if part == "distilled":  # what an interrupted run scored on its way is lost
        shutil.rmtree(folder, ignore_errors=True)
    plan = Plan(
        *(folder / "distilled", arm.settings(setting.last_tap), RATES, seed),
        stages=FIRST,
        cache=arm.cache,
        starts_random=arm.starts_random,
        is_narrow=arm.is_narrow,
        length=arm.length,
    )
    every = max(setting.interaction_steps // CURVE_POINTS, 1)
    some = _held_out(setting, setting.curve_samples)
    watch, audit = Watch(some, every=every), Audit(_held_out(setting, None), some, every)
    # as a finished stage is skipped, a later part measures nothing on the way
    callbacks = (*_added(setting, arm), watch, *([audit] if arm.reads_taps else []))
    student = train_student(setting.recipe(plan), callbacks)
    if part == "distilled":
        figures = _distilled(setting, student, watch, audit)
    elif part == "exits":
        figures = _flat(_exits_afterwards(setting, plan, student), "after")
    else:
        gc.collect()  # adapted students refer to themselves
        later = replace(plan, output=folder / part, student=student, stages=("finetuning",))
        tuned = _tuned(setting, later, arm.tunings[part])
        figures = _scored(setting, tuned, f"tuned-{part}")
    return {
        "arm": name,
        "seed": seed,
        "settings": _settings(setting, arm, part),
        "figures": figures,
        **({"audit": audit.rows, "gradients": audit.gradients} if audit.rows else {}),
        "wall_seconds": time.monotonic() - began,
        "versions": {"transformers": transformers.__version__} | machine(torch.device("cpu")),
    }


def _added(setting: Setting, arm: Arm) -> list[TrainerCallback]:
    """Return what the product does not have."""
    if arm.compares_kept:
        kept = kept_channels(setting.student, setting.narrow_student)
        return [KeptChannels(kept)]
    if arm.hidden_cosine:
        teacher = setting.backbone(setting.teacher, "teacher")
        return [HiddenCosine(teacher, setting.student_blocks)]
    return [LabelsToo(arm.label_weight)] if arm.label_weight else []


def _distilled(setting: Setting, student: Path, watch: Watch, audit: Audit) -> dict[str, float]:
    figures = _scored(setting, student, "distilled") | _flat(audit.exits, "along")
    for point in watch.curve:
        for figure in ("label_loss", "divergence_nats"):
            figures[f"step-{point['step']}.{figure}"] = point[figure]
    return figures


def _tuned(setting: Setting, plan: Plan, section: Any) -> Path:
    recipe = setting.recipe(replace(plan, finetuning=section))
    # alone, the stage would take the steps of the distillation too
    schedule = recipe.finetuning.model_copy(update={"steps": setting.finetuning_steps})
    return train_student(recipe.model_copy(update={"finetuning": schedule}))


def _exits_afterwards(setting: Setting, plan: Plan, student: Path) -> dict[int, Any]:
    """Train verbalizers towards the frozen student's own output, and score them."""
    later = replace(plan, output=plan.output.parent / "exits", student=student)
    recipe = _exits_recipe(setting, later)
    backbone = setting.backbone(student, "student")
    folder = train_student(recipe)
    bank = load_verbalizers(folder, backbone.decoder, fingerprint=backbone.fingerprint)
    return score_exits(_held_out(setting, None), backbone.decoder, bank)


def _exits_recipe(setting: Setting, plan: Plan) -> Recipe:
    recipe = setting.recipe(replace(plan, interaction={"inner": "none"}))
    sizes = {"steps": setting.verbalization_steps, "batch_size": setting.batch_size}
    stage = recipe.student.verbalization.model_copy(update={**EXITS["verbalization"], **sizes})
    verbalizer = recipe.student.verbalizer.model_copy(update=EXITS["verbalizer"])
    taps = {"taps": list(setting.student_taps)}
    section = recipe.student.model_copy(
        update={**taps, "verbalizer": verbalizer, "verbalization": stage}
    )
    return recipe.model_copy(update={"student": section, "stages": ["verbalization"]})


def _scored(setting: Setting, student: Path, name: str) -> dict[str, float]:
    found = _held_out(setting, None).score(setting.backbone(student, "student").decoder)
    return {
        f"{name}.{figure}": found[figure]
        for figure in ("label_loss", "divergence_nats", "token_accuracy")
    }


def _flat(exits: dict[int, Any], when: str) -> dict[str, float]:
    return {
        f"exit-{tap}.{when}.{figure}": value
        for tap, found in exits.items()
        for figure, value in found.items()
    }


@lru_cache(maxsize=2)
def _held_out(setting: Setting, limit: int | None) -> HeldOut:
    """Read conversations that no earlier choice was made on."""
    kept = setting.folder / f"teacher-on-confirmation-{limit or 'all'}.safetensors"
    teacher = setting.backbone(setting.teacher, "teacher")
    return HeldOut.read(teacher, _confirmation(setting), limit, kept)


def _confirmation(setting: Setting) -> Path:
    """Return held-out conversations, without those that the first proof scored."""
    if setting.made_up:
        return setting.data("held-out")
    return assets.further_short_answers(setting.held_out_samples, "held-out")
