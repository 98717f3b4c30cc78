"""A stop on request, checkpoints by time, and stages that were stopped before they trained."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from support.runs import changed, make_recipe
from vlsi_cache.errors import StageError
from vlsi_cache.interruption import Interrupted, ask_to_stop
from vlsi_cache.recipe import Recipe
from vlsi_cache.student import train_student
from vlsi_cache.teacher import DumpProgress, dump_teacher


class StopAt(TrainerCallback):
    """Asks for a stop in a step, as a signal would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step - 1:
            ask_to_stop(signal.SIGTERM, "here")


class Saved(TrainerCallback):
    """Notes the steps after which a checkpoint is there."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(state.global_step)


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    recipe = make_recipe(tmp_path_factory.mktemp("stopping"))
    dump_teacher(recipe)
    return changed(recipe, cache={"path": str(recipe.cache_path)})


def test_an_interrupted_stage_ends_as_an_unbroken_one(dumped: Recipe, tmp_path: Path) -> None:
    stages = ["verbalization", "interaction"]
    weights = []
    for name, stop in (("unbroken", None), ("interrupted", 2)):
        recipe = changed(dumped, stages=stages, output=str(tmp_path / name))
        if stop:
            with pytest.raises(Interrupted, match=rf"at step {stop} of 3 of .*go on") as caught:
                train_student(recipe, [StopAt(stop)])
            assert caught.value.exit_code == 143
            (checkpoint,) = (recipe.output / stages[-1]).glob("checkpoint-*")
            assert checkpoint.name == "checkpoint-2"
        weights.append(load_file(train_student(recipe) / "model.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


@pytest.mark.parametrize("minutes", [None, 1e-9])
def test_every_step_is_in_one_line_of_the_metrics_after_a_stop(
    minutes: float | None, dumped: Recipe, tmp_path: Path
) -> None:
    schedule = {"steps": 5, "log_every": 4, "save_every_minutes": minutes, "save_every": 100}
    stage = {"stages": ["finetuning"], "finetuning": schedule}
    found = {}
    for name, stop in (("unbroken", None), ("interrupted", 2)):
        recipe = changed(dumped, output=str(tmp_path / name), **stage)
        if stop:
            with pytest.raises(Interrupted):
                train_student(recipe, [StopAt(stop)])
        train_student(recipe)
        text = (recipe.output / "finetuning" / "metrics.jsonl").read_text(encoding="utf-8")
        found[name] = [json.loads(line) for line in text.splitlines()]
    wanted = {None: [1, 2, 4, 5], 1e-9: [1, 2, 3, 4, 5]}[minutes]
    assert [line["step"] for line in found["interrupted"]] == wanted
    for lines in found.values():
        assert sum(line["num_steps"] for line in lines) == 5
    sums = [
        sum(line["num_steps"] * line["metrics"]["loss"] for line in lines)
        for lines in found.values()
    ]
    assert sums[1] == pytest.approx(sums[0], rel=1e-5)
    tokens = [sum(line["num_tokens"] for line in lines) for lines in found.values()]
    assert tokens[0] == tokens[1]


def test_a_stop_in_the_last_step_keeps_the_result(dumped: Recipe, tmp_path: Path) -> None:
    recipe = changed(dumped, stages=["finetuning"], output=str(tmp_path / "run"))
    with pytest.raises(Interrupted, match="after finetuning"):
        train_student(recipe, [StopAt(3)])
    assert (recipe.student_path / "model.safetensors").is_file()
    assert train_student(recipe) == recipe.student_path


def test_an_interrupted_dump_publishes_whole_shards_alone(dumped: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "cache"
    recipe = changed(dumped, cache={"path": str(path)})

    def stop(progress: DumpProgress) -> None:
        if progress.num_samples == 7:
            ask_to_stop(signal.SIGINT, "here")

    with pytest.raises(
        Interrupted, match="at sample 7 of 12, of which whole shards keep 5; run the same"
    ) as caught:
        dump_teacher(recipe, stop)
    assert caught.value.exit_code == 130
    assert sorted(file.name for file in (path / "shards").iterdir()) == [
        "00000.json",
        "00000.zarr.zip",
    ]
    dump_teacher(recipe)
    for file in Path(dumped.cache_path).joinpath("shards").iterdir():
        assert (path / "shards" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(("minutes", "steps"), [(1e-9, [1, 2, 3]), (None, [3]), (1e6, [3])])
def test_checkpoints_follow_time_as_well_as_steps(
    minutes: float | None, steps: list[int], dumped: Recipe, tmp_path: Path
) -> None:
    schedule = {"save_every_minutes": minutes}
    recipe = changed(
        dumped, stages=["finetuning"], output=str(tmp_path / "run"), finetuning=schedule
    )
    saved = Saved()
    train_student(recipe, [saved])
    assert saved.steps == steps


def test_a_stage_that_never_trained_takes_other_settings(dumped: Recipe, tmp_path: Path) -> None:
    class Broken(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            raise OSError("the power is gone")

    recipe = changed(dumped, stages=["finetuning"], output=str(tmp_path / "run"))
    with pytest.raises(OSError, match="power"):
        train_student(recipe, [Broken()])
    other = changed(recipe, finetuning={"learning_rate": 1e-3})
    with pytest.raises(Interrupted):
        train_student(other, [StopAt(1)])
    with pytest.raises(StageError, match="learning_rate"):  # a step is kept now
        train_student(recipe)
    train_student(other)


def test_a_caller_without_handlers_stops_at_once() -> None:
    with pytest.raises(Interrupted, match="interrupted while reading; run"):
        ask_to_stop(signal.SIGINT, "while reading")
