"""A stage's folder: jobs take turns, and an error gives the turn back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vlsi_cache.errors import DataError, StageError
from vlsi_cache.recipe import Recipe, Schedule
from vlsi_cache.training import Run, Stage, StageModule, Training, run_stage


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
