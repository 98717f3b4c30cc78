"""Verdicts follow from the runs by one rule, and the figure shows what the verdicts say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def summary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Runs of two arms: one difference is clear, one is not, and all others have not run."""
    monkeypatch.syspath_prepend(FOLDER)
    from experiments.first_proof.setting import QUICK
    from experiments.worth import summary as module

    nearer = {"output": [1.0, 1.1, 0.9], "taps": [0.98, 1.085, 0.885]}
    labels = {"output": [2.0, 2.0, 2.0], "taps": [2.1, 1.9, 2.0]}
    for arm, divergences in nearer.items():
        for seed, divergence in enumerate(divergences):
            figures = {
                "distilled.divergence_nats": divergence,
                "distilled.label_loss": labels[arm][seed],
            }
            run = {"arm": arm, "seed": seed, "settings": {}, "figures": figures}
            folder = tmp_path / f"{arm}-seed{seed}"
            folder.mkdir()
            (folder / "distilled.json").write_text(json.dumps(run), encoding="utf-8")
    monkeypatch.setattr(module, "results_of", lambda setting: tmp_path)
    found: dict[str, Any] = module.summarize(QUICK)
    return found


def _recipes(summary: dict[str, Any]) -> dict[str, Any]:
    (found,) = (one for one in summary["experiments"] if one["name"] == "E2b")
    return dict(found)


def test_a_verdict_needs_an_interval_off_zero(summary: dict[str, Any]) -> None:
    nearer, later, _, labels, _ = _recipes(summary)["verdict"].split("; ")
    # -0.020, -0.015, -0.015 with t of 2 degrees of freedom: 4.303 × 0.002887 / √3 = 0.0072
    assert nearer == "taps − output, KL, distilled: -0.017 ± 0.007, lower, as predicted"
    assert later == "taps-first − output, KL, distilled: not run"
    assert labels.endswith("no difference is seen, as predicted")


def test_tokens_to_the_same_divergence_are_read_off_the_curves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    from experiments.worth.experiments import TOKENS, Comparison
    from experiments.worth.summary import _difference

    def curve(*values: float) -> dict[str, float]:
        return {f"step-{30 * i}.divergence_nats": value for i, value in enumerate(values)}

    taps = {1: curve(5.0, 3.0, 2.0, 1.0), 2: curve(5.0, 4.0, 3.5, 3.0), 13: curve(5.0, 1.0)}
    runs = {"taps": taps, "output": dict.fromkeys(taps, curve(6.0, 4.0, 3.0, 2.5))}
    found = _difference(Comparison("taps", "output", TOKENS, "tokens", (0.0, 0.0)), runs)
    # 2.5 lies halfway between steps 30 and 60 of 90. The second comes to 3.0 at its end only, and
    # the other side is there at step 60.
    assert found["each"] == pytest.approx([45 / 90 - 1, 90 / 60 - 1])
    assert found["seeds"] == [1, 2]  # the others are kept for the confirmation


def test_the_figure_shows_every_difference(summary: dict[str, Any]) -> None:
    from experiments.worth.figure import draw

    picture = ElementTree.fromstring(draw(summary))
    words = [element.text or "" for element in picture.iter() if element.tag.endswith("text")]
    for experiment in summary["experiments"]:
        for difference in experiment["differences"]:
            assert f"{difference['name']}: {difference['title']}" in words
    assert words.count("not run") == sum(
        difference["mean"] is None
        for experiment in summary["experiments"]
        for difference in experiment["differences"]
    )
    points = [element for element in picture.iter() if element.tag.endswith("circle")]
    assert len(points) == 2


def test_arms_and_comparisons_name_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    from experiments.worth.arms import ARMS
    from experiments.worth.experiments import EXPERIMENTS

    compared = {name for experiment in EXPERIMENTS for name in experiment.arms}
    assert compared == ARMS.keys()  # every arm that runs is reported
