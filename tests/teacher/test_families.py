"""The whole road for families that differ in head, blocks or processor, and in bfloat16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from support.runs import make_recipe, save_image_model, save_text_model
from vlsi_cache.recipe import Recipe
from vlsi_cache.store import open_cache
from vlsi_cache.student import train_student
from vlsi_cache.teacher import dump_teacher


def _whole_road(folder: Path, save: Any, family: str, images: bool, **changes: Any) -> Recipe:
    one_step = {"steps": 1, "batch_size": 2}
    recipe = make_recipe(
        folder,
        images=images,
        num_samples=4,
        teacher={
            "model": str(save(folder / "T", family=family, num_layers=4, seed=1)),
            "taps": [0, 1, 3],
            **changes,
            "verbalization": one_step,
        },
        student={
            "model": str(save(folder / "S", family=family, num_layers=2, seed=2)),
            "taps": [0],
            **changes,
            "verbalization": one_step,
        },
        interaction=one_step,
        finetuning=one_step,
    )
    dump_teacher(recipe, lambda _: None)
    train_student(recipe)
    return recipe


@pytest.mark.parametrize("family", ["gemma2", "cohere", "granite", "gpt2", "mamba", "qwen3"])
def test_a_text_family_takes_the_whole_road(family: str, tmp_path: Path) -> None:
    recipe = _whole_road(tmp_path, save_text_model, family, images=False)
    cache = open_cache(recipe.cache_path)
    assert cache.is_complete
    entropy = cache[0].distribution.entropy
    assert (entropy > 0).all()


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava", "smolvlm"])
def test_an_image_family_takes_the_whole_road(family: str, tmp_path: Path) -> None:
    recipe = _whole_road(tmp_path, save_image_model, family, images=True)
    assert (recipe.student_path / "model.safetensors").is_file()


def test_bfloat16_models_take_the_whole_road(tmp_path: Path) -> None:
    recipe = _whole_road(tmp_path, save_text_model, "llama", images=False, dtype="bfloat16")
    assert open_cache(recipe.cache_path).manifest.dtype == "bfloat16"
    weights = load_file(recipe.student_path / "model.safetensors")
    assert all(torch.isfinite(value.float()).all() for value in weights.values())
