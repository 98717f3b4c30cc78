"""What the written runs say: means per arm, differences seed by seed, and the verdicts."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from harness import mean_and_interval

from experiments.first_proof.setting import Setting
from experiments.worth.arms import ARMS
from experiments.worth.experiments import EXPERIMENTS, TOKENS, Comparison, Experiment
from experiments.worth.running import results_of

__all__ = ["summarize"]

Runs = dict[str, dict[int, dict[str, float]]]
"""Arm → seed → figures."""


def summarize(setting: Setting) -> dict[str, Any]:
    """Summarize the runs that are written down so far."""
    runs: Runs = {name: {} for name in ARMS}
    for path in sorted(results_of(setting).glob("*/*.json")):
        part = json.loads(path.read_text(encoding="utf-8"))
        runs[part["arm"]].setdefault(part["seed"], {}).update(part["figures"])
    return {"experiments": [_experiment(experiment, runs) for experiment in EXPERIMENTS]}


def _experiment(experiment: Experiment, runs: Runs) -> dict[str, Any]:
    differences = [_difference(pair, runs) for pair in experiment.comparisons]
    return {
        "name": experiment.name,
        "question": experiment.question,
        "prediction": experiment.prediction,
        "arms": [_arm(name, runs[name]) for name in experiment.arms],
        "differences": differences,
        "verdict": "; ".join(_verdict(found) for found in differences),
    }


def _arm(name: str, runs: dict[int, dict[str, float]]) -> dict[str, Any]:
    names = sorted({figure for figures in runs.values() for figure in figures})
    return {
        "name": name,
        "seeds": sorted(runs),
        "settings": {"interaction": dict(ARMS[name].interaction)},
        "figures": {
            figure: mean_and_interval([found[figure] for found in runs.values() if figure in found])
            for figure in names
        },
    }


def _difference(pair: Comparison, runs: Runs) -> dict[str, Any]:
    mine, others = runs[pair.arm], runs[pair.other]
    other_figure = pair.other_figure or pair.figure
    each = {
        seed: _compared(mine[seed], others[seed], pair.figure, other_figure)
        for seed in sorted(mine.keys() & others.keys() & {*pair.seeds})
    }
    found = {seed: value for seed, value in each.items() if value is not None}
    return {
        "name": pair.name,
        "title": pair.title,
        "arm": pair.arm,
        "from": pair.other,
        "figure": pair.figure,
        "from_figure": other_figure,
        "predicted": list(pair.predicted),
        "seeds": [*found],
        "each": [*found.values()],
        **mean_and_interval([*found.values()]),
    }


def _compared(
    mine: dict[str, float], other: dict[str, float], figure: str, other_figure: str
) -> float | None:
    if figure == TOKENS:
        return _share_of_tokens(_curve(mine), _curve(other))
    if figure not in mine or other_figure not in other:
        return None
    return mine[figure] - other[other_figure]


def _curve(figures: dict[str, float]) -> list[tuple[int, float]]:
    """Return step and divergence at each point on the way, ascending."""
    found = [
        (int(name.removeprefix("step-").split(".")[0]), value)
        for name, value in figures.items()
        if name.startswith("step-") and name.endswith(".divergence_nats")
    ]
    return sorted(found)


def _share_of_tokens(mine: list[tuple[int, float]], other: list[tuple[int, float]]) -> float | None:
    """Return the ratio of the steps to the same divergence, less 1.

    The goal is the last value that both curves reach. Steps have equally many tokens on average.
    """
    if not mine or not other:
        return None
    steps = _steps_to(other[-1][1], mine)
    if steps is not None:
        return steps / other[-1][0] - 1
    steps = _steps_to(mine[-1][1], other)
    return None if steps is None else mine[-1][0] / steps - 1


def _steps_to(goal: float, curve: list[tuple[int, float]]) -> float | None:
    """Return the steps after which a curve comes down to a value, or None if it never does."""
    for (before, high), (after, low) in pairwise(curve):
        if low <= goal < high:
            return before + (high - goal) / (high - low) * (after - before)
    return None


def _verdict(difference: dict[str, Any]) -> str:
    """Read one difference: its sign is known where its interval leaves zero out."""
    what = f"{difference['name']}, {difference['title']}"
    mean, interval = difference["mean"], difference["interval"]
    if mean is None:
        return f"{what}: not run"
    if interval is None:
        return f"{what}: {mean:+.3f}, one seed"
    low, high = difference["predicted"]
    sign = "no difference is seen" if abs(mean) <= interval else "lower" if mean < 0 else "higher"
    met = "as predicted" if low <= mean <= high else f"predicted {low:+.3f} to {high:+.3f}"
    return f"{what}: {mean:+.3f} ± {interval:.3f}, {sign}, {met}"
