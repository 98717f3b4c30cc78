"""Checkpoints that get another step's number, with the best one among them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlsi_cache.errors import StageError
from vlsi_cache.training.folders.checkpoints import (
    best_of,
    is_after_last_step,
    last_checkpoint,
    remove_torn_checkpoints,
    renumber,
    state_of,
)


def _write(folder: Path, step: int, best: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "model.safetensors").write_text(f"weights of {step}", "utf-8")
    # as a run in another working directory recorded it
    state = {"global_step": step, "best_model_checkpoint": f"elsewhere/checkpoint-{best}"}
    (path / "trainer_state.json").write_text(json.dumps(state), "utf-8")
    return path


@pytest.mark.parametrize(
    ("best", "step", "names"),
    [
        (8, 4, ["checkpoint-3", "checkpoint-4"]),  # its own step would be a later one
        (8, 20, ["checkpoint-10", "checkpoint-20", "checkpoint-8"]),
        (10, 4, ["checkpoint-4"]),  # the last one is the best
        (2, 5, ["checkpoint-2", "checkpoint-5"]),
    ],
)
def test_the_best_checkpoint_stays_beside_the_last_one(
    tmp_path: Path, best: int, step: int, names: list[str]
) -> None:
    for number in {best, 10}:
        _write(tmp_path, number, best)
    renumber(tmp_path / "checkpoint-10", step)
    remove_torn_checkpoints(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    last = last_checkpoint(tmp_path)
    assert last is not None
    assert last.name == f"checkpoint-{step}"
    assert state_of(last)["global_step"] == step
    assert (last / "model.safetensors").read_text("utf-8") == "weights of 10"
    kept = best_of(last)
    assert kept is not None
    assert (kept / "model.safetensors").read_text("utf-8") == f"weights of {best}"


def _note(folder: Path, step: int) -> Path:
    note = folder / f"checkpoint-{step}" / "notes.txt"
    note.parent.mkdir(exist_ok=True)
    note.write_text("mine", "utf-8")
    return note


@pytest.mark.parametrize(("at", "step"), [(4, 4), (10, 4), (20, 20), (15, 4)])
def test_a_folder_of_the_user_in_the_way_is_named_and_kept(
    tmp_path: Path, at: int, step: int
) -> None:
    """It is at the new step, or it would be the last checkpoint again."""
    _write(tmp_path, 10, 10)
    if at == 15:
        _write(tmp_path, 15, 10)
    note = _note(tmp_path, at)
    with pytest.raises(StageError, match=f"checkpoint-{at}: this is in the way"):
        renumber(tmp_path / "checkpoint-10", step)
    assert note.read_text("utf-8") == "mine"
    assert (tmp_path / "checkpoint-10" / "model.safetensors").is_file()


def test_a_file_in_the_way_is_named_too(tmp_path: Path) -> None:
    _write(tmp_path, 10, 10)
    (tmp_path / "checkpoint-4").write_text("mine", "utf-8")
    with pytest.raises(StageError, match="checkpoint-4: this is in the way"):
        renumber(tmp_path / "checkpoint-10", 4)


def test_the_best_checkpoint_takes_a_step_that_is_free(tmp_path: Path) -> None:
    for number in (8, 10):
        _write(tmp_path, number, 8)
    note = _note(tmp_path, 3)
    renumber(tmp_path / "checkpoint-10", 4)
    kept = best_of(tmp_path / "checkpoint-4")
    assert kept == tmp_path / "checkpoint-2"
    assert (kept / "model.safetensors").read_text("utf-8") == "weights of 8"
    assert note.read_text("utf-8") == "mine"


@pytest.mark.parametrize("step", [1, 5, 20, 40])
@pytest.mark.parametrize("in_all", [10, 11, 30])
def test_a_checkpoint_has_all_steps_under_another_number_only_if_it_had_them(
    tmp_path: Path, step: int, in_all: int
) -> None:
    path = _write(tmp_path, 10, 10) / "trainer_state.json"
    path.write_text(
        json.dumps(json.loads(path.read_text("utf-8")) | {"max_steps": in_all}), "utf-8"
    )
    assert is_after_last_step(path.parent) == (in_all == 10)
    renumber(path.parent, step)
    last = last_checkpoint(tmp_path)
    assert last is not None
    assert last.name == f"checkpoint-{step}"
    assert is_after_last_step(last) == (in_all == 10)
