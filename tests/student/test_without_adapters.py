"""Interaction without adapters: the decoder blocks' own weights train, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from support.runs import make_recipe
from vlsi_cache.recipe import Recipe
from vlsi_cache.student import train_student
from vlsi_cache.teacher import dump_teacher


class _Stop(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise InterruptedError


def _recipe(folder: Path, **interaction: Any) -> Recipe:
    recipe = make_recipe(
        folder,
        interaction={"lora": None, "steps": 4, "save_every": 2, **interaction},
        stages=["verbalization", "interaction"],
    )
    dump_teacher(recipe, lambda _: None)
    return recipe


@pytest.mark.parametrize("inner", ["forward", "none"])
def test_blocks_train_and_nothing_else(inner: str, tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, inner=inner)
    student = train_student(recipe)
    before = load_file(Path(str(recipe.student.model)) / "model.safetensors")
    after = load_file(student / "model.safetensors")
    assert before.keys() == after.keys()
    assert {value.dtype for value in after.values()} == {torch.float32}
    moved = {name for name in before if not torch.equal(before[name].float(), after[name])}
    assert moved == {name for name in before if ".layers." in name}


def test_an_interrupted_run_ends_in_the_same_weights(tmp_path: Path) -> None:
    unbroken = train_student(_recipe(tmp_path / "unbroken"))
    recipe = _recipe(tmp_path / "broken")
    with pytest.raises(InterruptedError):
        train_student(recipe, (_Stop(),))
    resumed = train_student(recipe)
    weights = [load_file(folder / "model.safetensors") for folder in (unbroken, resumed)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
