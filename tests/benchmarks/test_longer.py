"""Longer runs are compared seed by seed, read as far as they came, and stopped in time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)


def test_a_seed_counts_where_both_arms_finished(tmp_path: Path) -> None:
    from experiments.longer.commands import Job
    from experiments.longer.summary import summarize
    from experiments.longer.training import Run

    ends = {"output": [0.5, 0.6, 0.4], "hidden": [0.48, 0.585]}
    runs, scores = [], {}
    for arm, values in ends.items():
        for seed, value in enumerate(values):
            job = Job(f"long-{arm}-{seed}", (), tmp_path)
            runs.append(Run("long", arm, seed, 10, tmp_path / job.name, job))
            scores[job.name] = {"divergence_nats": value, "label_loss": 2.0, "tokens": 9}
    found = {row["name"]: row for row in summarize(runs, scores, 100)["differences"]}
    assert found["long"]["seeds"] == [0, 1]
    assert found["long"]["mean"] == pytest.approx(-0.0175)
    assert found["long"]["is_seen"] is False  # two seeds: 12.7 × 0.0035 / √2 = 0.032
    assert [guess["holds"] for guess in found["long"]["guesses"]] == [True, True]
    assert found["short"]["mean"] is None
    assert {guess["holds"] for guess in found["short"]["guesses"]} == {None}


def test_half_a_line_of_a_run_that_was_ended_is_passed_over(tmp_path: Path) -> None:
    from experiments.longer.curves import Curve

    lines = [
        {"step": step, "metrics": {"loss": 1.0}, "num_tokens": 50, "num_steps": 1, "seconds": s}
        for step, s in ((1, 9.0), (2, 0.5), (3, 0.7))
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 4, "met', encoding="utf-8")
    measured = {"step": 2, "metrics": {"held_out_divergence_nats": 0.7}}
    (tmp_path / "held-out.jsonl").write_text(json.dumps(measured) + "\n", encoding="utf-8")
    curve = Curve.read(tmp_path)
    assert curve.points == [{"step": 2, "tokens": 100, "divergence_nats": 0.7}]
    assert curve.tokens == 150
    assert curve.seconds_per_step == pytest.approx(0.6)  # the first step warms up


def test_nothing_starts_without_time_for_it(tmp_path: Path) -> None:
    from experiments.longer.commands import LEAST, Clock, Job, run_jobs

    job = Job("late", ("--version",), tmp_path)
    run_jobs([job], 1, LEAST - 1, Clock())
    assert job.process is None
    assert job.code is None


def test_a_command_runs_outside_the_repository_and_leaves_its_log(tmp_path: Path) -> None:
    from experiments.longer.commands import Clock, Job, run_jobs

    right, wrong = Job("right", ("--version",), tmp_path), Job("wrong", ("no-such",), tmp_path)
    run_jobs([right, wrong], 2, 500, Clock())
    assert right.code == 0
    assert "version" in right.last_lines()
    assert wrong.code == 2
    assert "no-such" in wrong.last_lines()
