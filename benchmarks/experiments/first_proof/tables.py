"""The tables of the proof: scores, differences, costs, and the scores over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness import PrintedTable, shown

from experiments.first_proof.summary import CURVES

__all__ = ["tables"]


def tables(result: dict[str, Any]) -> list[PrintedTable]:
    """Show a summary, without the tables that would be empty."""
    arms = result["arms"]
    found = (
        _scores(arms),
        _differences(result["differences"]),
        _costs([arm for arm in arms if arm["stage_step_seconds"]]),
        *(_over_the_steps(arms, figure) for figure in CURVES),
    )
    return [table for table in found if table.rows]


def _scores(arms: Sequence[dict[str, Any]]) -> PrintedTable:
    return PrintedTable(
        "held-out conversations: means over seeds ± half the 95 % interval",
        ("arm", "seeds", "label loss (nats)", "KL to teacher (nats)", "tokens right", "minutes"),
        [
            (
                arm["name"],
                str(len(arm["seeds"])),
                shown(arm["label_loss"]),
                shown(arm["divergence_nats"]),
                shown(arm["token_accuracy"]),
                f"{arm['wall_seconds'] / 60:.0f}",
            )
            for arm in arms
        ],
    )


def _differences(differences: Sequence[dict[str, Any]]) -> PrintedTable:
    return PrintedTable(
        "differences, seed by seed",
        ("arm", "minus", "seeds", "label loss (nats)", "KL to teacher (nats)"),
        [
            (
                difference["name"],
                difference["from"],
                str(len(difference["seeds"])),
                shown(difference["label_loss"], sign="+"),
                shown(difference["divergence_nats"], sign="+"),
            )
            for difference in differences
        ],
        named=2,
    )


def _costs(arms: Sequence[dict[str, Any]]) -> PrintedTable:
    return PrintedTable(
        "costs of distillation alone, or of fine-tuning alone, in a fresh process",
        ("arm", "step (s)", "peak (MB)", "cache (MB)", "learning rates"),
        [
            (
                arm["name"],
                f"{arm['stage_step_seconds']:.2f}",
                f"{arm['stage_peak_bytes'] / 1e6:.0f}",
                f"{arm['cache_bytes'] / 1e6:.1f}" if arm["cache_bytes"] else "",
                ", ".join(f"{rate:g}" for rate in arm["rates"].values()),
            )
            for arm in arms
        ],
    )


def _over_the_steps(arms: Sequence[dict[str, Any]], figure: str) -> PrintedTable:
    curves = {arm["name"]: arm["curves"][figure] for arm in arms}
    steps = sorted({step for curve in curves.values() for step in curve})
    return PrintedTable(
        f"{CURVES[figure]} over the steps, of the first of these conversations",
        ("arm", *map(str, steps)),
        [
            (name, *(f"{curve[step]:.2f}" if step in curve else "" for step in steps))
            for name, curve in curves.items()
        ],
    )
