"""The tables of the experiments: differences, and each arm's own figures."""

from __future__ import annotations

from typing import Any

from harness import PrintedTable, shown

__all__ = ["tables"]

_FIGURES = (
    ("distilled.divergence_nats", "KL (distilled)"),
    ("distilled.label_loss", "labels (distilled)"),
    ("tuned-labels.label_loss", "labels (fine-tuned)"),
    ("exit-6.along.acceptance", "tap 6 (along)"),
    ("exit-6.after.acceptance", "tap 6 (after)"),
    ("exit-10.after.acceptance", "tap 10 (after)"),
)


def tables(result: dict[str, Any]) -> list[PrintedTable]:
    """Show every difference with its prediction, then every arm."""
    experiments = result["experiments"]
    arms = {arm["name"]: arm for found in experiments for arm in found["arms"] if arm["seeds"]}
    return [_differences(experiments), _arms(list(arms.values()))]


def _differences(experiments: list[dict[str, Any]]) -> PrintedTable:
    rows = [
        (
            experiment["name"],
            found["name"],
            found["title"],
            str(len(found["seeds"])),
            "{:+.3f} … {:+.3f}".format(*found["predicted"]),
            shown(found, sign="+"),
        )
        for experiment in experiments
        for found in experiment["differences"]
    ]
    headings = ("", "arms", "figure", "seeds", "predicted", "found")
    return PrintedTable("differences, seed by seed, ± half the 95 % interval", headings, rows, 3)


def _arms(arms: list[dict[str, Any]]) -> PrintedTable:
    absent = {"mean": None, "interval": None}
    rows = [
        (
            arm["name"],
            str(len(arm["seeds"])),
            *(shown(arm["figures"].get(figure, absent)) for figure, _ in _FIGURES),
        )
        for arm in arms
    ]
    headings = ("arm", "seeds", *(heading for _, heading in _FIGURES))
    return PrintedTable("means over seeds ± half the 95 % interval", headings, rows)
