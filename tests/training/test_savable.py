"""A student that transformers would not save is refused before hours go into it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.runs import changed, make_recipe
from vlsi_cache.errors import ModelError
from vlsi_cache.student import train_student


def test_a_student_that_could_not_be_saved_is_refused_before_it_trains(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, num_samples=4, stages=["finetuning"])
    file = Path(str(recipe.student.model), "config.json")
    raw = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(raw | {"output_attentions": True}), encoding="utf-8")
    with pytest.raises(ModelError, match=r"config\.json: transformers would not save .*eager"):
        train_student(recipe)
    assert not (recipe.output / "finetuning").exists()
    student = train_student(changed(recipe, student={"attn_implementation": "eager"}))
    saved = json.loads((student / "config.json").read_text(encoding="utf-8"))
    assert saved["output_attentions"]
