"""Stage one of a few taps at a time ends with the weights of all taps at once, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from support.runs import make_recipe
from vlsi_cache.interruption import Interrupted, ask_to_stop
from vlsi_cache.models import load_backbone
from vlsi_cache.recipe import Recipe, recipe_from_mapping
from vlsi_cache.training import begin_run
from vlsi_cache.verbalizer import Verbalization, obtain_verbalizers

TRAINED = "verbalizers.safetensors"


def _recipe(folder: Path, **schedule: Any) -> Recipe:
    raw = make_recipe(folder, num_samples=9).model_dump(mode="json")
    raw["teacher"]["taps"] = [0, 1, 3, 5, 6]
    raw["teacher"]["verbalization"] |= {"save_every": 1, **schedule}
    return recipe_from_mapping(raw, where="test")


def _train(recipe: Recipe) -> Path:
    run = begin_run(recipe, "teacher")
    teacher = load_backbone(recipe.teacher, "teacher", torch.device("cpu"))
    folder = recipe.teacher_verbalizers_path
    obtain_verbalizers(run, recipe.teacher, teacher, folder)
    return folder


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = _train(_recipe(tmp_path_factory.mktemp("together")))
    return (folder / TRAINED).read_bytes()


@pytest.mark.parametrize("size", [2, 9])
def test_groups_end_with_the_weights_of_all_taps_at_once(
    size: int, together: bytes, tmp_path: Path
) -> None:
    recipe = _recipe(tmp_path, taps_at_once=size)
    folder = _train(recipe)
    assert (folder / TRAINED).read_bytes() == together
    assert not list(folder.glob("taps-*"))
    assert not list(folder.rglob("checkpoint-*"))


def test_an_interrupted_group_goes_on_where_it_stopped(
    together: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop comes in the second group, and the first is not trained again."""
    recipe = _recipe(tmp_path, taps_at_once=2)
    seen: list[tuple[int, ...]] = []
    forward = Verbalization.forward

    def watched(module: Verbalization, *args: Any, **kwargs: Any) -> Any:
        seen.append(module.bank.taps)
        if len(seen) == 5:
            ask_to_stop(15, "here")
        return forward(module, *args, **kwargs)

    monkeypatch.setattr(Verbalization, "forward", watched)
    with pytest.raises(Interrupted, match="at step 2 of 3"):
        _train(recipe)
    folder = recipe.teacher_verbalizers_path
    assert sorted(path.name for path in folder.glob("taps-*")) == ["taps-0-1", "taps-3-5"]
    assert (_train(recipe) / TRAINED).read_bytes() == together
    assert seen == [(0, 1)] * 3 + [(3, 5)] * 3 + [(6,)] * 3


def test_the_size_of_groups_may_change_between_two_runs(together: bytes, tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, taps_at_once=3)
    folder = _train(recipe)
    before = (folder / TRAINED).stat().st_mtime_ns
    _train(_recipe(tmp_path, taps_at_once=None))
    assert (folder / TRAINED).stat().st_mtime_ns == before
