"""What is wrong is found before the data is read or a model loaded, and named together."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.runs import make_recipe
from vlsi_cache.errors import RecipeError, StageError, VlsiCacheError
from vlsi_cache.recipe import Recipe, recipe_from_mapping
from vlsi_cache.student import train_student
from vlsi_cache.teacher import dump_teacher


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    draws = {"k": 0, "m": 14, "drawn_from": "rest"}
    recipe = make_recipe(tmp_path_factory.mktemp("early"), cache=draws)
    dump_teacher(recipe)
    train_student(recipe)
    # Whatever gets further than the cheap checks stops here, with another error.
    for model in (recipe.teacher.model, recipe.student.model):
        weights = Path(str(model), "model.safetensors")
        lost = {name: torch.full_like(one, torch.nan) for name, one in load_file(weights).items()}
        save_file(lost, weights, metadata={"format": "pt"})
    return _with(recipe, cache__path=str(recipe.cache_path))


def _with(recipe: Recipe, **changes: Any) -> Recipe:
    raw = recipe.model_dump(mode="json")
    for path, value in changes.items():
        node = raw
        *parents, last = path.split("__")
        for parent in parents:
            node = node[parent]
        node[last] = value
    return recipe_from_mapping(raw, where="test")


def _error(run: Any, recipe: Recipe, **changes: Any) -> VlsiCacheError:
    with pytest.raises(VlsiCacheError) as caught:
        run(_with(recipe, **changes))
    return caught.value


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"teacher__taps": [1, 99]}, ["taps are not blocks", "from 0 to 7", "99"]),
        ({"teacher__taps": [-1]}, ["taps are not blocks", "found -1"]),
        ({"cache__k": 9_999}, ["larger than the vocabulary"]),
        ({"cache__m": 3}, ["begun with other settings", "asked for 3"]),
        ({"teacher__verbalization__steps": 4}, ["steps is 3, asked for 4"]),
        ({"teacher__verbalizers": "/nowhere", "teacher__taps": None}, ["no trained verbalizers"]),
        ({"device": "cuda:7"}, ["not a device"]),
        ({"seed": 5}, ["seed is 0, asked for 5"]),
    ],
)
def test_a_dump_is_refused_before_the_weights_are_read(
    changes: dict[str, Any], parts: list[str], recipe: Recipe
) -> None:
    error = str(_error(dump_teacher, recipe, **changes))
    for part in parts:
        assert part in error
    assert "weights" not in error


def test_a_teacher_without_a_template_is_refused_before_its_weights_are_read(
    recipe: Recipe, tmp_path: Path
) -> None:
    base = shutil.copytree(str(recipe.teacher.model), tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    output = str(tmp_path / "new")
    changes = {"teacher__model": str(base), "cache__path": None, "output": output}
    assert "no chat template" in str(_error(dump_teacher, recipe, **changes))
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "A plain text."}\n')
    error = str(_error(dump_teacher, recipe, data__path=str(texts), **changes))
    assert "hidden states are not finite" in error


def test_a_cache_of_another_record_is_refused_early_and_says_how_to_go_on(
    recipe: Recipe,
) -> None:
    error = str(_error(dump_teacher, recipe, cache__k=4, cache__m=12, cache__drawn_from="whole"))
    assert 'drawn_from is absent, asked for "whole"' in error
    settings = [part for part in error.rstrip(".").split() if part.startswith("cache.")]
    record = {part.partition("=")[0]: part.partition("=")[2] for part in settings}
    kept = recipe.cache
    assert record == {
        "cache.k": str(kept.k), "cache.m": str(kept.m), "cache.drawn_from": kept.drawn_from,
    }  # fmt: skip
    assert "to those settings." in str(_error(dump_teacher, recipe, cache__samples_per_shard=1))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"student__taps": [0, 4]}, ["taps are not blocks", "from 0 to 3"]),
        ({"student__taps": [0, 1, 2, 3], "output": "new"}, ["fewer teacher taps", "at least 4"]),
        ({"interaction__learning_rate": 1e-3}, ["learning_rate is 0.01, asked for 0.001"]),
        ({"finetuning__steps": 9}, ["steps is 3, asked for 9"]),
        ({"interaction__tail": "bucket"}, ["interaction.tail is bucket"]),
        ({"cache__path": "/nowhere"}, ["/nowhere"]),
    ],
)
def test_a_training_is_refused_before_the_weights_are_read(
    changes: dict[str, Any], parts: list[str], recipe: Recipe
) -> None:
    error = str(_error(train_student, recipe, **changes))
    for part in parts:
        assert part in error
    assert "weights" not in error


def test_all_problems_are_named_at_once(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_bytes(Path(str(recipe.teacher.model), "config.json").read_bytes())
    error = _error(
        dump_teacher,
        recipe,
        teacher__model=str(empty),
        data__path=str(tmp_path / "absent.jsonl"),
        output=str(tmp_path / "file" / "run"),
    )
    assert isinstance(error, StageError)
    first, *lines = str(error).split("\n")
    assert first == "3 problems:"
    parts = ("output folder cannot be written", "absent.jsonl", "no safetensors weights")
    assert all(line.startswith("  ") for line in lines)
    for part in parts:
        assert sum(part in line for line in lines) == 1
    nothing = _error(dump_teacher, recipe_from_mapping({"device": "cpu"}, where="test"))
    assert isinstance(nothing, RecipeError)
    assert "data.path" in str(nothing)
    assert "teacher.model" in str(nothing)


def _copied(recipe: Recipe, folder: Path, **changes: Any) -> Recipe:
    """A run that may be changed."""
    shutil.copytree(recipe.output, folder, ignore=shutil.ignore_patterns("cache"))
    return _with(recipe, output=str(folder), **changes)


def test_fine_tuning_alone_does_not_write_over_a_distilled_student(
    recipe: Recipe, tmp_path: Path
) -> None:
    alone = _copied(recipe, tmp_path / "run", stages=["finetuning"])
    shutil.rmtree(alone.output / "finetuning")
    error = str(_error(train_student, alone))
    assert error.startswith(f"{alone.output}: this folder holds a distilled student, and")
    assert "--stages verbalization,interaction,finetuning to go on from it" in error
    assert "another --output" in error
    shutil.rmtree(alone.output / "interaction")  # its exits still say what the student is
    error = str(_error(train_student, alone))
    assert "distilled student, and fine-tuning alone would begin" in error
    assert f"or delete {alone.student_path}" in error
    assert (alone.student_path / "exits" / "verbalizers.json").is_file()


def test_fine_tuning_alone_may_begin_with_the_distilled_student_by_name(
    recipe: Recipe, tmp_path: Path
) -> None:
    distilled = tmp_path / "run" / "interaction" / "model"
    alone = _copied(recipe, tmp_path / "run", stages=["finetuning"], student__model=str(distilled))
    shutil.rmtree(alone.output / "finetuning")
    assert train_student(alone) == alone.student_path
    assert (alone.student_path / "exits" / "verbalizers.json").is_file()


def test_fine_tuning_alone_in_a_folder_of_its_own_is_not_refused(
    recipe: Recipe, tmp_path: Path
) -> None:
    error = str(_error(train_student, recipe, stages=["finetuning"], output=str(tmp_path / "new")))
    assert "distilled" not in error
    assert "hidden states are not finite" in error


@pytest.mark.parametrize(
    ("lost", "stale"),
    [
        (["interaction"], ["finetuning"]),
        (["interaction/model/config.json"], ["finetuning"]),
        (["student-verbalizers"], ["interaction", "finetuning"]),
        (["student-verbalizers", "interaction"], ["finetuning"]),
        (["student-verbalizers", "finetuning"], ["interaction"]),
    ],
)
def test_a_stage_is_not_made_again_beneath_one_that_builds_on_it(
    lost: list[str], stale: list[str], recipe: Recipe, tmp_path: Path
) -> None:
    run = _copied(recipe, tmp_path / "run")
    for name in lost:
        path = run.output / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    error = str(_error(train_student, run))
    folders = " and ".join(str(run.output / name) for name in stale)
    assert f"Delete {folders} and run the same command again" in error
    assert "weights" not in error
    for name in stale:
        shutil.rmtree(run.output / name)
    assert "builds on it" not in str(_error(train_student, run))
