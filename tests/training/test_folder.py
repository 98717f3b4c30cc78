"""A stage's folder: jobs take turns, and an error gives the turn back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from support.commands import Job
from vlsi_cache.errors import DataError, StageError
from vlsi_cache.recipe import Recipe, Schedule
from vlsi_cache.training import Run, Stage, StageModule, Training, run_stage
from vlsi_cache.training.folders.checkpoints import last_checkpoint
from vlsi_cache.training.folders.stage_folder import StageFolder


class Numbers:
    """Samples that are their index."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        return index


class Weight(StageModule):
    accepts_loss_kwargs = True

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, labels: Tensor, num_items_in_batch: Tensor) -> dict[str, Tensor]:
        return {"loss": self.weight * labels.sum() / num_items_in_batch}


def _collate(samples: Sequence[int]) -> dict[str, Any]:
    return {"labels": torch.tensor(samples)}


def _refuse(samples: Sequence[int]) -> dict[str, Any]:
    raise DataError("sample cannot be read", where=f"sample {samples[0]}")


def _stage(folder: Path, collate: Any, **settings: Any) -> Stage[Weight]:
    def save(module: Weight) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"")

    return Stage(
        name="numbers",
        folder=folder,
        result=folder,
        schedule=Schedule(steps=2, batch_size=2, workers=1),
        settings=settings,
        start=lambda: Training(Weight(), Numbers(), collate),
        save=save,
    )


@pytest.fixture
def run() -> Run:
    numbers: Any = Numbers()
    return Run(Recipe(), torch.device("cpu"), numbers)


def test_a_stage_that_failed_in_a_worker_can_be_run_again_at_once(run: Run, tmp_path: Path) -> None:
    """The failed one's workers live as long as its traceback, and have inherited its lock."""
    with pytest.raises(DataError) as caught:
        run_stage(run, _stage(tmp_path, _refuse))
    assert run_stage(run, _stage(tmp_path, _collate)) == tmp_path
    assert "in _refuse" in "".join(caught.value.__notes__), "the worker's own traceback is kept"
    assert not list(tmp_path.glob("checkpoint-*"))


class Greedy(Weight):
    """Its second step asks for more memory than any machine has."""

    num_steps = 0

    def forward(self, labels: Tensor, num_items_in_batch: Tensor) -> dict[str, Tensor]:
        self.num_steps += 1
        if self.num_steps == 2:
            torch.empty(2**50)
        return super().forward(labels, num_items_in_batch)


@pytest.mark.parametrize(
    ("bound", "mend"),
    [(None, "set gradient_checkpointing: true. To begin"), (1000, "true or lower batch_tokens")],
)
def test_a_stage_without_memory_is_one_line_that_says_what_mends_it(
    run: Run, tmp_path: Path, bound: int | None, mend: str
) -> None:
    schedule = Schedule(steps=3, batch_size=1, batch_tokens=bound)
    run = replace(run, lengths=[np.ones(8, np.int64)])
    stage = replace(
        _stage(tmp_path, _collate),
        schedule=schedule,
        start=lambda: Training(Greedy(), Numbers(), _collate),
    )
    with pytest.raises(StageError, match=rf"out of memory in numbers; found .*{mend}"):
        run_stage(run, stage)


def test_other_settings_are_refused(run: Run, tmp_path: Path) -> None:
    run_stage(run, _stage(tmp_path, _collate, rate=1))
    with pytest.raises(StageError, match="rate is 1, asked for 2"):
        run_stage(run, _stage(tmp_path, _collate, rate=2))


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors"])
def test_a_result_without_one_of_its_files_is_made_again(
    lost: str, run: Run, tmp_path: Path
) -> None:
    run_stage(run, _stage(tmp_path, _collate))
    (tmp_path / lost).unlink()
    run_stage(run, _stage(tmp_path, _collate))
    assert (tmp_path / lost).is_file()


def test_a_stage_that_never_trained_starts_over_with_other_settings(
    run: Run, tmp_path: Path
) -> None:
    with pytest.raises(DataError):
        run_stage(run, _stage(tmp_path, _refuse, rate=1))
    (tmp_path / "arrivals.jsonl").write_text("{}\n")
    run_stage(run, _stage(tmp_path, _collate, rate=2))
    assert not (tmp_path / "arrivals.jsonl").exists()
    with pytest.raises(StageError, match="rate is 2, asked for 1"):
        run_stage(run, _stage(tmp_path, _collate, rate=1))


@pytest.mark.parametrize("junk", [b"null", b"[]", b'{"finished": true, "settings": null}', b"\0\0"])
def test_a_record_of_junk_is_one_line_that_says_how_to_go_on(
    junk: bytes, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "stage.json").write_bytes(junk)
    with pytest.raises(StageError, match=r"stage\.json: stage\.json cannot be read.*Delete the f"):
        run_stage(run, _stage(tmp_path, _collate))


@pytest.mark.parametrize("name", ["stage.json", "metrics.jsonl"])
def test_a_pipe_in_a_files_place_is_refused_at_once(name: str, run: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(StageError, match=rf"/{name}: .*\(a pipe or a device, not a file\)"):
        run_stage(run, _stage(tmp_path, _collate))


def test_a_result_that_was_cut_off_is_made_again(run: Run, tmp_path: Path) -> None:
    def save(module: Weight) -> None:
        stage.save(module)
        save_file({"weight": torch.zeros(9)}, weights, metadata={"format": "pt"})

    weights = tmp_path / "model.safetensors"
    stage = _stage(tmp_path, _collate)
    whole = replace(stage, save=save)
    run_stage(run, whole)
    before = weights.read_bytes()
    weights.write_bytes(before[:-5])
    run_stage(run, whole)
    assert weights.read_bytes() == before
    save_file({"weight": torch.ones(9)}, weights)
    changed = weights.read_bytes()
    assert len(changed) < len(before)
    run_stage(run, whole)
    assert weights.read_bytes() == changed, "what the user wrote is whole, and is kept"


def test_only_own_checkpoints_are_resumed_from_and_deleted(run: Run, tmp_path: Path) -> None:
    for name in ("checkpoint-best", "checkpoint-3", "checkpoint-1-old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine")
    (tmp_path / "checkpoint-7").mkdir()  # an interruption's
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "checkpoint-9").symlink_to(tmp_path / "elsewhere")
    stage = _stage(tmp_path, _collate)
    schedule = Schedule(steps=6, batch_size=2, save_every=1)
    run_stage(run, replace(stage, schedule=schedule))
    found = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert found == {"checkpoint-best", "checkpoint-3", "checkpoint-1-old", "checkpoint-9"}
    assert (tmp_path / "checkpoint-3" / "notes.txt").read_text() == "mine"


def test_a_checkpoint_with_a_file_of_the_users_is_resumed_from_and_kept(
    run: Run, tmp_path: Path
) -> None:
    stage = _stage(tmp_path, _collate)
    stage = replace(stage, schedule=Schedule(steps=3, batch_size=2, save_every=1))

    def fail(module: Weight) -> None:
        raise DataError("the result cannot be saved")

    with pytest.raises(DataError):
        run_stage(run, replace(stage, save=fail))
    (tmp_path / "checkpoint-3" / "scores.json").write_text("{}")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-3"
    run_stage(run, stage)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]


def test_a_damaged_checkpoint_is_named(run: Run, tmp_path: Path) -> None:
    stage = _stage(tmp_path, _collate)
    stage = replace(stage, schedule=Schedule(steps=3, batch_size=2, save_every=1))

    def fail(module: Weight) -> None:
        raise DataError("the result cannot be saved")

    with pytest.raises(DataError):
        run_stage(run, replace(stage, save=fail))
    kept = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert kept == ["checkpoint-2", "checkpoint-3"], "the last two"

    def validate_damaged(file: Path, content: bytes, words: str = "") -> None:
        whole = file.read_bytes()
        file.write_bytes(content)
        named = rf"{file.parent.name}: checkpoint cannot be read.*{words}.*Delete"
        with pytest.raises(StageError, match=named):
            run_stage(run, stage)
        file.write_bytes(whole)

    # nothing is trained after the last step, so its weights alone are read
    validate_damaged(tmp_path / "checkpoint-3" / "model.safetensors", b"\0\0")
    shutil.rmtree(tmp_path / "checkpoint-3")
    for name in ("optimizer.pt", "model.safetensors"):
        file = tmp_path / "checkpoint-2" / name
        validate_damaged(file, file.read_bytes()[: file.stat().st_size // 2])
    other = (tmp_path / "stage.json").read_bytes()
    validate_damaged(tmp_path / "checkpoint-2" / "scheduler.pt", other, "not what torch has saved")
    assert run_stage(run, stage) == tmp_path


TWO_JOBS = """
import logging, sys, time
from pathlib import Path
from training.test_folder import _collate, _stage, Numbers
import torch
from vlsi_cache.recipe import Recipe
from vlsi_cache.training import Run, Training, run_stage
from dataclasses import replace

logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
folder = Path(sys.argv[1])
stage = _stage(folder, _collate)

def start():
    print("begins", flush=True)
    sys.stdin.readline()  # until the other waits
    return stage.start()

run_stage(Run(Recipe(), torch.device("cpu"), Numbers()), replace(stage, start=start))
print("ends", flush=True)
"""


def test_two_jobs_in_one_folder_take_turns_and_train_once(tmp_path: Path) -> None:
    def start() -> Job:
        return Job("-c", TWO_JOBS, tmp_path, cwd=Path(__file__).parents[1])

    def reads(job: Job, sought: str) -> None:
        assert any(sought in line for line in job.stdout), sought

    first = start()
    reads(first, "begins")
    second = start()
    reads(second, f"{tmp_path}: waiting for the job that is at work here")
    output = first.end("go on\n")
    assert "ends" in output
    output = second.end()
    assert "begins" not in output, "what the first has made is taken"
    assert "ends" in output
    assert first.returncode == second.returncode == 0


def test_a_stage_goes_on_if_its_bound_was_recorded_without_a_number(tmp_path: Path) -> None:
    def folder(bound: int | str) -> StageFolder:
        settings = {"interaction": {"batch_tokens": bound}}
        return StageFolder(tmp_path, settings, tmp_path / "config.json")

    folder("given").finish(lambda: (tmp_path / "config.json").write_text("{}"))
    folder(512).validate_settings()
    folder(512).finish(lambda: None)
    with pytest.raises(StageError, match="batch_tokens is 512, asked for 256"):
        folder(256).validate_settings()
