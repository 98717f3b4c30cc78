"""A whole run with a cache of likely tokens and draws together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.runs import make_recipe
from vlsi_cache.errors import RecipeError
from vlsi_cache.recipe import Recipe
from vlsi_cache.store import open_cache, verify_cache
from vlsi_cache.student import train_student
from vlsi_cache.teacher import dump_teacher

TOGETHER: dict[str, Any] = {"k": 4, "m": 12, "drawn_from": "whole"}


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    recipe = make_recipe(tmp_path_factory.mktemp("together"), cache=TOGETHER)
    dump_teacher(recipe, lambda _: None)
    return recipe


def test_the_cache_is_of_version_2_and_sound(dumped: Recipe) -> None:
    cache = open_cache(dumped.cache_path)
    assert (cache.manifest.format_version, cache.manifest.sampling.drawn_from) == (2, "whole")
    found = verify_cache(dumped.cache_path)
    assert (found.sound, found.complete, found.damages) == (True, True, ())
    for record in cache:
        np.testing.assert_allclose(record.distribution.weights().sum(-1), 1, atol=1e-5)
        most = np.exp(record.distribution.top_log_probs[..., 0])
        np.testing.assert_array_equal(record.distribution.most_likely()[1], most)


@pytest.mark.parametrize(
    "changes",
    [{}, {"inner": "js", "output": "reverse", "tail": "bucket"}, {"tail": "renormalize"}],
    ids=["sample", "bucket", "renormalize"],
)
def test_the_student_learns_from_it(
    changes: dict[str, Any], dumped: Recipe, tmp_path: Path
) -> None:
    recipe = dumped.model_copy(
        update={
            "interaction": dumped.interaction.model_copy(update={"steps": 2, **changes}),
            "stages": ["verbalization", "interaction"],
            "cache": dumped.cache.model_copy(update={"path": dumped.cache_path}),
            "output": tmp_path / "run",
        }
    )
    assert (train_student(recipe) / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "cache",
    [{**TOGETHER, "k": 0}, {**TOGETHER, "m": 0}, {**TOGETHER, "k": 256}],
    ids=["no likely ones", "no draws", "too many likely ones"],
)
def test_a_contradiction_is_refused_by_name(cache: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cache\.drawn_from: is whole, which needs"):
        make_recipe(tmp_path, cache=cache)
