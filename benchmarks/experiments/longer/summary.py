"""Differences of the two arms seed by seed, at the end and on the way, beside the predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from harness import PrintedTable, mean_and_interval, shown

from experiments.longer.prediction import PREDICTION, Guess, verdict
from experiments.longer.training import Run

__all__ = ["summarize", "tables"]

Scores = Mapping[str, Mapping[str, float]]

_RUNS = {"short": "short", "early": "long, on the way", "long": "long"}
"""Difference → the runs that it is of."""


def summarize(runs: Sequence[Run], scores: Scores, short_tokens: int) -> dict[str, Any]:
    """Summarize what has run so far. Without scores, only the curves are there."""
    on_the_way = _on_the_way([run for run in runs if run.kind == "long"])
    differences = [_at_the_end(kind, runs, scores) for kind in ("short", "long")]
    early = min(on_the_way, key=lambda row: abs(row["tokens"] - short_tokens), default=None)
    if early is not None:
        differences.insert(1, {**early, "name": "early", **verdict("early", early)})
    return {
        "prediction": [asdict(guess) for guess in PREDICTION],
        "differences": differences,
        "levels": [_level(kind, runs, scores) for kind in ("short", "long")],
        "on_the_way": on_the_way,
        "scores": {name: dict(found) for name, found in scores.items()},
        "runs": [_described(run) for run in runs],
    }


def _at_the_end(kind: str, runs: Sequence[Run], scores: Scores) -> dict[str, Any]:
    """Subtract the output's divergence from the hidden's, over the seeds that have both."""
    ends: dict[int, dict[str, float]] = {}
    for run in runs:
        if run.kind == kind and run.name in scores:
            ends.setdefault(run.seed, {})[run.arm] = scores[run.name]["divergence_nats"]
    tokens = [run.curve.tokens for run in runs if run.kind == kind and run.name in scores]
    found = {"name": kind, "tokens": round(fmean(tokens)) if tokens else None, **_paired(ends)}
    return {**found, **verdict(kind, found)}


def _on_the_way(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the difference at each measured step, over the seeds that have both arms there."""
    steps: dict[int, dict[int, dict[str, float]]] = {}
    tokens: dict[int, list[int]] = {}
    for run in runs:
        for point in run.curve.points:
            if point["divergence_nats"] is not None and point["step"]:
                seeds = steps.setdefault(point["step"], {})
                seeds.setdefault(run.seed, {})[run.arm] = point["divergence_nats"]
                tokens.setdefault(point["step"], []).append(point["tokens"])
    rows = [
        {"step": step, "tokens": round(fmean(tokens[step])), **_paired(seeds)}
        for step, seeds in sorted(steps.items())
    ]
    return [row for row in rows if row["seeds"]]


def _paired(values: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    both = {seed: found for seed, found in sorted(values.items()) if len(found) == 2}
    each = [found["hidden"] - found["output"] for found in both.values()]
    return {"seeds": [*both], "each": each, **mean_and_interval(each)}


def _level(kind: str, runs: Sequence[Run], scores: Scores) -> dict[str, Any]:
    """Return where the output alone ends."""
    ends = [
        scores[run.name]["divergence_nats"]
        for run in runs
        if run.kind == kind and run.arm == "output" and run.name in scores
    ]
    name = f"{kind}-level"
    found = mean_and_interval(ends)
    return {"name": name, **found, "guesses": verdict(name, found)["guesses"]}


def _described(run: Run) -> dict[str, Any]:
    curve = run.curve
    return {
        "name": run.name,
        "arm": run.arm,
        "seed": run.seed,
        "steps": run.steps,
        "tokens": curve.tokens,
        "seconds": run.job.seconds,
        "seconds_per_step": curve.seconds_per_step,
        "status": run.job.code,
        "curve": curve.points,
    }


def tables(result: dict[str, Any]) -> list[PrintedTable]:
    """Show the differences with their predictions, and the curve of differences."""
    return [_differences(result["differences"]), _curve(result["on_the_way"])]


def _differences(differences: Sequence[dict[str, Any]]) -> PrintedTable:
    rows = [
        (
            _RUNS[found["name"]],
            "" if found["tokens"] is None else f"{found['tokens']:,}",
            str(len(found["seeds"])),
            *(_predicted(by, found["name"]) for by in ("first", "second")),
            shown(found, sign="+"),
        )
        for found in differences
    ]
    headings = ("runs", "tokens", "seeds", "first guess", "second guess", "hidden (− output)")
    return PrintedTable("nats of KL(teacher ‖ student) ± half the 95 % interval", headings, rows)


def _predicted(by: str, figure: str) -> str:
    guesses: list[Guess] = [
        guess for guess in PREDICTION if guess.by == by and guess.figure == figure
    ]
    return str(guesses[0]) if guesses else ""


def _curve(rows: Sequence[dict[str, Any]]) -> PrintedTable:
    shown_rows = [
        (str(row["step"]), f"{row['tokens']:,}", str(len(row["seeds"])), shown(row, sign="+"))
        for row in rows
    ]
    headings = ("step", "tokens", "seeds", "hidden (− output)")
    return PrintedTable("long runs on the way, as the training measures", headings, shown_rows)
