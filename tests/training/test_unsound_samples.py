"""Samples whose loss or gradient is not finite: left out of their step, by name, everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from support.ranks import RankServer, errors, seen
from vlsi_cache.errors import StageError
from vlsi_cache.training.loop.guarding.redoing import StepStart
from vlsi_cache.training.loop.guarding.unsound import UnsoundSamples


def _weight(folder: Path) -> float:
    return float(json.loads((folder / "weight.json").read_text()))


def _reminders(folder: Path) -> list[str]:
    return list(json.loads((folder / "reminders.json").read_text()))


@pytest.mark.parametrize(("num_ranks", "how"), [(1, "loss"), (2, "gradient"), (3, "loss")])
def test_a_step_is_that_of_the_other_samples_alone(
    server: RankServer, tmp_path: Path, num_ranks: int, how: str
) -> None:
    """One step of all 12 samples, in two micro-batches and in pieces of few tokens."""
    schedule = {
        "steps": 1,
        "batch_size": -(-12 // (2 * num_ranks)),
        "gradient_accumulation": 2,
        "batch_tokens": 9,
    }
    task = {"unsound": {"7": how, "4": how}, "on_error": "skip"}
    assert server.run(tmp_path, num_ranks, 12, schedule=schedule, **task) == [0] * num_ranks
    sound = [sample for sample in range(12) if sample not in (4, 7)]
    assert _weight(tmp_path) == pytest.approx(-1e-3 * sum(sound) / len(sound))
    (reminder,) = _reminders(tmp_path)
    assert "line: 1 step left out 2 samples" in reminder
    assert "'s4', 's7', the first because its" in reminder
    assert len({len(passes) for passes in seen(tmp_path, num_ranks)}) == 1, "nobody waits"


def test_a_process_without_sound_samples_keeps_in_step(server: RankServer, tmp_path: Path) -> None:
    task = {"unsound": dict.fromkeys("01234", "loss"), "on_error": "skip"}
    schedule = {"epochs": 3, "batch_size": 2}
    assert server.run(tmp_path, 2, 12, schedule=schedule, **task) == [0, 0]
    assert "left out 5 samples" in _reminders(tmp_path)[0]
    assert _weight(tmp_path) < 0


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_samples_that_are_unsound_in_company_alone_pass_by_themselves(
    server: RankServer, tmp_path: Path, num_ranks: int
) -> None:
    schedule = {"steps": 1, "batch_size": 12 // num_ranks}
    assert (
        server.run(tmp_path, num_ranks, 12, schedule=schedule, unsound={"7": "company"})
        == [0] * num_ranks
    )
    assert _weight(tmp_path) == pytest.approx(-1e-3 * sum(range(12)) / 12)
    assert not _reminders(tmp_path)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_with_stop_the_first_one_ends_the_run_by_name(
    server: RankServer, tmp_path: Path, num_ranks: int
) -> None:
    schedule = {"epochs": 1, "batch_size": 2}
    codes = server.run(tmp_path, num_ranks, 12, schedule=schedule, unsound={"7": "gradient"})
    assert codes == [1] * num_ranks
    said = errors(tmp_path, num_ranks)
    assert len(set(said)) == 1
    assert "line: sample 's7' cannot be learned from in step" in said[0]
    assert "its gradient is not finite. Leave such samples out with --on-error skip" in said[0]
    assert not (tmp_path / "weight.json").exists()


@pytest.mark.parametrize(("steps", "found"), [(40, "of the last 8 steps"), (3, "no result")])
def test_a_run_whose_samples_are_mostly_unsound_stops_and_names_the_cause(
    server: RankServer, tmp_path: Path, steps: int, found: str
) -> None:
    task: dict[str, Any] = {
        "unsound": {str(sample): "loss" for sample in range(10)},
        "on_error": "skip",
    }
    schedule = {"steps": steps, "batch_size": 6}
    assert server.run(tmp_path, 2, 12, schedule=schedule, **task) == [1, 1]
    said = errors(tmp_path, 2)
    assert said[0] == said[1]
    assert found in said[0]
    assert "Lower line.learning_rate" in said[0]


def _account(**changes: Any) -> UnsoundSamples:
    settings: dict[str, Any] = {"name": str, "is_half": False, "skips": True, "speaks": False}
    return UnsoundSamples("interaction", **(settings | changes))


def test_float16_is_named_as_the_likely_cause() -> None:
    account = _account(is_half=True, skips=False)
    with pytest.raises(StageError, match=r"none of the 2 samples.*65504.*dtype: float32"):
        account.leave_out(1, {0: "its loss is nan", 1: "its loss is nan"}, 2)


def test_a_few_unsound_samples_among_many_end_nothing() -> None:
    account = _account()
    for step in range(100):
        account.leave_out(step, {step % 7: "its loss is inf"}, 3)
    account.validate_end()
    summary = account.summary()
    assert summary is not None
    assert summary.startswith("interaction: 100 steps left out 7 samples whose")
    assert "'0', '1', '2', '3' and 3 more, the first because its loss is inf" in summary


def test_the_share_counts_the_samples_of_all_processes(server: RankServer, tmp_path: Path) -> None:
    schedule = {"epochs": 1, "batch_size": 1}
    order, folder = tmp_path / "order", tmp_path / "unsound"
    order.mkdir()
    folder.mkdir()
    assert server.run(order, 2, 12, schedule=schedule) == [0, 0]
    sound = {sample for passes in seen(order, 2) for batch in passes[:2] for sample in batch}
    assert len(sound) == 4, "two steps of the six"
    unsound = {str(sample): "loss" for sample in range(12) if sample not in sound}
    task: dict[str, Any] = {"unsound": unsound, "on_error": "skip", "schedule": schedule}
    assert server.run(folder, 2, 12, **task) == [1, 1]
    said = errors(folder, 2)
    assert said[0] == said[1]
    assert "8 of 12 samples were left out, so there is no result" in said[0]


def test_a_spare_piece_has_no_samples_of_its_own() -> None:
    start = StepStart(0, {}, torch.zeros(()), [((4, 7), 1), ((2,), 1), ((2,), 0)])
    assert start.num_samples() == 3


def test_a_run_without_a_result_has_none_when_it_is_started_again(
    server: RankServer, tmp_path: Path
) -> None:
    unsound = {str(sample): "loss" for sample in range(10)}
    task: dict[str, Any] = {"unsound": unsound, "on_error": "skip"}
    task |= {"schedule": {"steps": 3, "batch_size": 12}}
    said = []
    for _ in range(2):
        assert server.run(tmp_path, 1, 12, **task) == [1]
        said += errors(tmp_path, 1)
    assert "30 of 36 samples were left out, so there is no result" in said[0]
    assert said[0] == said[1]


def test_an_interruption_does_not_begin_the_row_of_bad_steps_again() -> None:
    account = _account()
    for step in range(1, 8):
        account.leave_out(step, {step: "its loss is inf"}, 1)
    resumed = _account()
    resumed.resume(account.written())
    assert resumed.summary() == account.summary()
    with pytest.raises(StageError, match=r"of the last 8 steps were left out.*'1': its loss"):
        resumed.leave_out(8, {8: "its loss is inf"}, 1)
