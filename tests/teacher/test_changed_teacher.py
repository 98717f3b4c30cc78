"""A dump that goes on notices files of its teacher that no weight shows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.runs import changed, make_recipe
from vlsi_cache.errors import CacheMismatchError
from vlsi_cache.recipe import Recipe
from vlsi_cache.store import open_cache, verify_cache
from vlsi_cache.student import train_student
from vlsi_cache.teacher import dump_teacher

SMALL = {"samples_per_shard": 2, "k": 4, "m": 4}


def rewrite(recipe: Recipe, name: str, change: Callable[[Any], object]) -> None:
    path = Path(str(recipe.teacher.model), name)
    tree = json.loads(path.read_bytes())
    change(tree)
    path.write_text(json.dumps(tree), "utf-8")


def lose_a_shard(recipe: Recipe) -> None:
    for name in ("index.json", "shards/00000.json", "shards/00000.zarr.zip"):
        Path(recipe.cache_path, name).unlink()


def other_rope(tree: Any) -> None:
    tree["rope_parameters"]["rope_theta"] = 37.0


def other_pixels(tree: Any) -> None:
    tree["image_processor"]["image_mean"] = [0.9, 0.1, 0.9]


@pytest.mark.parametrize("images", [False, True])
def test_another_config_or_processor_is_refused_before_the_verbalizers_train(
    tmp_path: Path, images: bool
) -> None:
    recipe = make_recipe(tmp_path, images=images, num_samples=4, cache=SMALL)
    dump_teacher(recipe)
    lose_a_shard(recipe)
    shutil.rmtree(recipe.teacher_verbalizers_path)
    if images:
        rewrite(recipe, "processor_config.json", other_pixels)
    else:
        rewrite(recipe, "config.json", other_rope)
    wanted = r"image_mean is \[0\.48" if images else r"teacher\.config\.sha256 is .*config\.json"
    with pytest.raises(CacheMismatchError, match=wanted):
        dump_teacher(recipe)
    assert not Path(recipe.teacher_verbalizers_path).exists()
    assert not Path(recipe.cache_path, "shards/00000.zarr.zip").exists()


def test_a_teacher_that_moved_or_was_saved_again_may_go_on(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, images=True, num_samples=4, cache=SMALL)
    dump_teacher(recipe)
    before = [record.distribution.token_ids.tolist() for record in open_cache(recipe.cache_path)]
    lose_a_shard(recipe)
    moved = Path(str(recipe.teacher.model)).rename(tmp_path / "moved")
    recipe = changed(recipe, teacher={"model": str(moved)})
    rewrite(
        recipe,
        "config.json",
        lambda tree: tree.update(transformers_version="5.99.0", use_cache=False, _a="b"),
    )
    rewrite(
        recipe,
        "processor_config.json",
        # a field that another version would add, with the value that this one has in effect
        lambda tree: tree["image_processor"].pop("rescale_factor"),
    )
    dump_teacher(recipe)
    assert verify_cache(recipe.cache_path).complete
    after = [record.distribution.token_ids.tolist() for record in open_cache(recipe.cache_path)]
    assert after == before


def test_a_cache_from_before_configs_were_kept_goes_on_and_is_learned(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, num_samples=4, cache=SMALL, stages=["finetuning"])
    dump_teacher(recipe)
    cache = Path(recipe.cache_path)
    manifest = json.loads((cache / "manifest.json").read_bytes())
    assert manifest["teacher"].pop("config")["sha256"]
    shutil.rmtree(cache)
    cache.mkdir()
    (cache / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    dump_teacher(recipe)
    assert open_cache(cache).manifest.teacher.config is None
    assert verify_cache(cache).complete
    assert train_student(recipe).exists()
