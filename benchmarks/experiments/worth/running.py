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

from experiments.first_proof.scoring import HeldOut, Watch
from experiments.first_proof.setting import Plan, Rates, Setting
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


def results_of(setting: Setting) -> Path:
    """Return the folder of the runs' results. Those of a smoke are not committed."""
    return setting.folder / "worth" if setting.made_up else Path(__file__).parent / "results"


def run_arm(setting: Setting, arm: Arm, seed: int) -> dict[str, Any]:
    """Run one arm, unless its result is there."""
    path = results_of(setting) / f"{arm.name}-seed{seed}.json"

    def make() -> dict[str, Any]:
        if setting.made_up:
            return _run(setting, arm.name, seed)
        return in_fresh_process(_run, setting, arm.name, seed)  # type: ignore[no-any-return]

    run = written_once(path, make)
    if run["settings"] != json.loads(json.dumps(_settings(setting, arm))):
        raise SystemExit(f"{path} was made by an arm that has changed. Remove it.")
    return run


def _settings(setting: Setting, arm: Arm) -> dict[str, Any]:
    tunings = {name: dict(section) for name, section in arm.tunings.items()}
    return {"interaction": arm.settings(setting.last_tap), "tunings": tunings}


def _run(setting: Setting, name: str, seed: int) -> dict[str, Any]:
    arm = ARMS[name]
    began = time.monotonic()
    folder = setting.folder / "worth-runs" / f"{name}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    plan = Plan(folder / "distilled", arm.settings(setting.last_tap), RATES, seed, stages=FIRST)
    every = max(setting.interaction_steps // CURVE_POINTS, 1)
    watch = Watch(_held_out(setting, setting.curve_samples), every=every)
    audit = Audit(_held_out(setting, None), _held_out(setting, setting.curve_samples), every)
    callbacks = (watch, audit) if arm.reads_taps else (watch,)
    student = train_student(setting.recipe(plan), callbacks)
    figures = _scored(setting, student, "distilled")
    for point in watch.curve:
        for figure in ("label_loss", "divergence_nats"):
            figures[f"step-{point['step']}.{figure}"] = point[figure]
    figures |= _flat(audit.exits, "along")
    if arm.exits:
        figures |= _flat(_exits_afterwards(setting, plan, student), "after")
    for tuning, section in arm.tunings.items():
        gc.collect()  # adapted students refer to themselves
        later = replace(plan, output=folder / tuning, student=student, stages=("finetuning",))
        figures |= _scored(setting, _tuned(setting, later, section), f"tuned-{tuning}")
    shutil.rmtree(folder)
    return {
        "arm": name,
        "seed": seed,
        "settings": _settings(setting, arm),
        "figures": figures,
        "audit": audit.rows,
        "gradients": audit.gradients,
        "wall_seconds": time.monotonic() - began,
        "versions": {"transformers": transformers.__version__} | machine(torch.device("cpu")),
    }


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
    bank = load_verbalizers(
        train_student(recipe), backbone.decoder, fingerprint=backbone.fingerprint
    )
    return score_exits(_held_out(setting, None), backbone.decoder, bank)


def _exits_recipe(setting: Setting, plan: Plan) -> Recipe:
    recipe = setting.recipe(replace(plan, interaction={"inner": "none"}))
    stage = recipe.student.verbalization.model_copy(
        update={
            "target": "final",
            "steps": setting.verbalization_steps,
            "batch_size": setting.batch_size,
            "learning_rate": 1e-3,
            "final_learning_rate": 1e-4,
        }
    )
    verbalizer = recipe.student.verbalizer.model_copy(update={"structure": "mlp"})
    section = recipe.student.model_copy(
        update={
            "taps": list(setting.student_taps),
            "verbalizer": verbalizer,
            "verbalization": stage,
        }
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
    path = setting.folder / "confirmation.jsonl"
    if not path.exists():
        count = setting.held_out_samples
        known = set(assets.short_answers(count, "held-out").read_text("utf-8").splitlines())
        more = assets.short_answers(2 * count, "held-out").read_text("utf-8").splitlines()
        new = [line for line in more if line not in known][:count]
        path.write_text("\n".join(new) + "\n", encoding="utf-8")
    return path
