"""Checkpoints that get another step's number, with the best one among them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlsi_cache.training.folders.checkpoints import (
    best_of,
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
