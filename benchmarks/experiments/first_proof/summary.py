"""Means of the written runs over their seeds, and differences of arms seed by seed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

from harness import mean_and_interval

from experiments.first_proof.arms import ARMS, COMPARISONS
from experiments.first_proof.setting import Setting

__all__ = ["CURVES", "summarize"]

CURVES = {"label_loss": "label loss (nats)", "divergence_nats": "KL to teacher (nats)"}


def summarize(setting: Setting) -> dict[str, Any]:
    """Summarize the runs that are written down so far."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ARMS}
    for path in sorted(setting.results.glob("runs/*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        runs[run["arm"]].append(run)
    return {
        "arms": [_arm(setting, name, found) for name, found in runs.items() if found],
        "differences": [
            _difference(runs[name], runs[other])
            for name, other in COMPARISONS
            if runs[name] and runs[other]
        ],
    }


def _arm(setting: Setting, name: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    own = _cost(setting, name)
    tuning = _cost(setting, "fine-tuning")
    finals = [run["final"] for run in runs]
    return {
        "name": name,
        "source": ARMS[name].source,
        "seeds": [run["seed"] for run in runs],
        "rates": runs[0]["rates"],
        "label_loss": mean_and_interval([final["label_loss"] for final in finals]),
        "divergence_nats": mean_and_interval([final["divergence_nats"] for final in finals]),
        "token_accuracy": mean_and_interval([final["token_accuracy"] for final in finals]),
        "exact_answers": mean_and_interval(
            [final["by_kind"]["word"]["exact_answers"] for final in finals]
        ),
        "step_seconds": own and tuning and _mean_step(setting, own, tuning),
        "peak_bytes": own and tuning and max(own["peak_bytes"], tuning["peak_bytes"]),
        "stage_step_seconds": own and own["step_seconds"],
        "stage_peak_bytes": own and own["peak_bytes"],
        "cache_bytes": own and own["cache_bytes"],
        "wall_seconds": statistics.median(run["wall_seconds"] for run in runs),
        "curves": {figure: _curve(runs, figure) for figure in CURVES},
    }


def _cost(setting: Setting, name: str) -> dict[str, Any] | None:
    path = setting.results / "costs" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _mean_step(setting: Setting, own: dict[str, Any], tuning: dict[str, Any]) -> float:
    """Return the mean over the whole schedule. Every arm ends with the same fine-tuning."""
    seconds = (
        own["step_seconds"] * setting.interaction_steps
        + tuning["step_seconds"] * setting.finetuning_steps
    )
    return float(seconds / setting.num_steps)


def _curve(runs: Sequence[dict[str, Any]], figure: str) -> dict[int, float]:
    """Return means over the seeds, by step."""
    points: dict[int, list[float]] = {}
    for run in runs:
        for point in run["curve"]:
            points.setdefault(point["step"], []).append(point[figure])
    return {step: statistics.fmean(found) for step, found in points.items()}


def _difference(runs: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Subtract another arm from one, over the seeds that both have."""
    finals = {run["seed"]: run["final"] for run in runs}
    other_finals = {run["seed"]: run["final"] for run in others}
    seeds = sorted(finals.keys() & other_finals.keys())
    return {
        "name": runs[0]["arm"],
        "from": others[0]["arm"],
        "seeds": seeds,
        **{
            figure: mean_and_interval(
                [finals[seed][figure] - other_finals[seed][figure] for seed in seeds]
            )
            for figure in ("label_loss", "divergence_nats")
        },
    }
