"""A student whose recipe says bfloat16: small steps count, and the result is bfloat16."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from support.runs import make_recipe
from vlsi_cache.models import load_config
from vlsi_cache.student import train_student


def test_every_tensor_moves_and_the_student_is_saved_in_bfloat16(tmp_path: Path) -> None:
    recipe = make_recipe(
        tmp_path, stages=["finetuning"], finetuning={"steps": 20, "learning_rate": 1e-3}
    )
    recipe = recipe.model_copy(
        update={"student": recipe.student.model_copy(update={"dtype": "bfloat16"})}
    )
    before = load_file(Path(str(recipe.student.model)) / "model.safetensors")
    folder = train_student(recipe)
    after = load_file(folder / "model.safetensors")
    assert {weight.dtype for weight in after.values()} == {torch.bfloat16}
    assert load_config(str(folder)).dtype == torch.bfloat16
    still = [name for name in before if torch.equal(before[name].bfloat16(), after[name])]
    assert not still
