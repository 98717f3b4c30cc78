"""A full disk, a file in a folder's place, a folder that vanishes: one line, and nothing torn."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

from support.commands import run_job
from support.runs import changed, make_recipe
from vlsi_cache.errors import StageError
from vlsi_cache.recipe import Recipe
from vlsi_cache.student import train_student
from vlsi_cache.teacher import dump_teacher
from vlsi_cache.training.folders.checkpoints import save_model

# a limit of the process on the size of a file stands in for a full disk: writing fails half way,
# as it does there, and it needs no rights to set and to lift
SCRIPT = """
import json, logging, resource, sys
from pathlib import Path
import torch
from vlsi_cache import train_student
from vlsi_cache.errors import VlsiCacheError
from vlsi_cache.recipe import Recipe

torch.set_num_threads(1)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for line in Path(sys.argv[1]).read_text().splitlines():
    task = json.loads(line)
    recipe = Recipe.model_validate(task["recipe"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (task["limit"] or hard, hard))
    try:
        print(json.dumps(str(train_student(recipe))), flush=True)
    except VlsiCacheError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        print(json.dumps(f"error: {error}"), flush=True)
"""


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    recipe = make_recipe(tmp_path_factory.mktemp("no-room"))
    dump_teacher(recipe)
    return recipe


def _task(recipe: Recipe, output: Path, limit: int, stages: list[str], **every: Any) -> str:
    raw = json.loads(recipe.model_dump_json())
    raw["output"], raw["stages"] = str(output), stages
    raw["cache"]["path"] = str(recipe.cache_path)
    for schedule in (raw["student"]["verbalization"], raw["interaction"], raw["finetuning"]):
        # a worker hands its batches over in files, which the limit would hold back too
        schedule.update(every, workers=0)
    return json.dumps({"recipe": raw, "limit": limit})


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(dumped: Recipe, tmp_path: Path) -> None:
    two = ["verbalization", "interaction"]
    broken = tmp_path / "broken"
    tasks = [
        _task(dumped, broken, 6_000, ["verbalization"]),  # its result
        _task(dumped, broken, 0, ["verbalization"]),
        _task(dumped, broken, 30_000, two, save_every=1),  # a checkpoint
        _task(dumped, broken, 0, two, save_every=1),
        _task(dumped, broken, 30_000, [*two, "finetuning"]),  # the last checkpoint
        _task(dumped, tmp_path / "events", 500, ["verbalization"]),  # TensorBoard's events
        _task(dumped, tmp_path / "unbroken", 0, two),
    ]
    file = tmp_path / "tasks.jsonl"
    file.write_text("\n".join(tasks), encoding="utf-8")
    done = run_job("-c", SCRIPT, file)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(said) == len(tasks)
    full = [said[0], said[2], said[4], said[5]]
    places = (
        "student-verbalizers",
        "interaction/checkpoint-1",
        "finetuning/checkpoint-3",
        "events",
    )
    for line, place in zip(full, places, strict=True):
        assert line.startswith("error: "), line
        assert place in line
        assert "no room for the file; found File too large. Make room, then run the same" in line
    assert not any(line.startswith("error") for line in (said[1], said[3], said[6]))
    assert not list(broken.rglob("*.partial"))
    assert not (broken / "student").exists()
    weights = [load_file(Path(said[number]) / "model.safetensors") for number in (3, 6)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@contextmanager
def _limited(num_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("num_bytes", [1, 3000])
def test_no_room_for_temporary_files_stops_the_dump_in_one_line(
    num_bytes: int, dumped: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the template is written by Python, and the tokenizer by its own library
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    recipe = dumped.model_copy(update={"output": tmp_path / "run"})
    with _limited(num_bytes), pytest.raises(StageError, match=rf"{tmp_path}.*: no room for the fi"):
        dump_teacher(recipe)


def test_a_missing_folder_for_temporary_files_is_named(
    dumped: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    recipe = dumped.model_copy(update={"output": tmp_path / "run"})
    with pytest.raises(StageError, match=r"gone/.*: file cannot be read or written"):
        dump_teacher(recipe)


def test_no_room_for_the_student_leaves_the_one_before_whole(
    dumped: Recipe, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(dumped.student.model)
    folder = tmp_path / "student"
    save_model(model, dumped.student, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with _limited(20_000), pytest.raises(StageError, match=r"student: no room for.*Make room"):
        save_model(model, dumped.student, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_a_file_in_a_folders_place_is_named(dumped: Recipe, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    recipe = dumped.model_copy(update={"output": tmp_path / "run", "stages": ["finetuning"]})
    with pytest.raises(StageError, match=r"run.*: (stage\.json|file) cannot be read.*Not a direc"):
        train_student(recipe)


class _Vanish(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        shutil.rmtree(Path(args.output_dir), ignore_errors=True)


def test_a_folder_that_vanishes_while_it_trains_is_named(dumped: Recipe, tmp_path: Path) -> None:
    cache = dumped.cache.model_copy(update={"path": dumped.cache_path})
    recipe = dumped.model_copy(
        update={"output": tmp_path, "cache": cache, "stages": ["verbalization", "interaction"]}
    )
    with pytest.raises(StageError, match=r"matching\.jsonl: file cannot.*No such file.*Check that"):
        train_student(recipe, [_Vanish()])


class _Stopped(TrainerCallback):
    """Stops a stage at its end, when its last checkpoint is there and its result is not."""

    def on_train_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        raise KeyboardInterrupt


class _Saves(TrainerCallback):
    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_save(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self.steps.append(state.global_step)


def test_a_stage_with_all_its_steps_takes_no_further_one(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, num_samples=16, stages=["finetuning"])
    schedule = {"steps": 3, "batch_size": 4, "final_learning_rate": 1e-2}  # in an epoch of four
    students = []
    for name in ("whole", "stopped"):
        run = changed(recipe, finetuning=schedule, output=str(tmp_path / name))
        if name == "stopped":
            with pytest.raises(KeyboardInterrupt):
                train_student(run, [_Stopped()])
        students.append(load_file(train_student(run) / "model.safetensors"))
        lines = (run.output / "finetuning" / "metrics.jsonl").read_text("utf-8").splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert all(torch.equal(value, students[1][name]) for name, value in students[0].items())


def test_a_stage_that_goes_on_saves_as_often_as_it_is_now_asked_to(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, num_samples=16, stages=["finetuning"])
    run = changed(recipe, finetuning={"steps": 6, "batch_size": 4, "save_every": 2})

    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
            if state.global_step == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_student(run, [Stop()])
    saves = _Saves()
    train_student(changed(run, finetuning={"save_every": 1}), [saves])
    assert saves.steps == [3, 4, 5, 6]
