"""What a student learns from our record, against whole distributions and what else one would do.

The teacher is SmolLM2-135M-Instruct, the student some of its blocks. Arms (`proof/arms.py`) start
alike and take as many steps of as many samples: distillation, then fine-tuning on the labels, but
for the arm of fine-tuning alone. Learning rates come from short runs scored on validation; held-out
conversations are scored by whole distributions.

Everything is written down as it is made, and what is there is not made again: an interrupted run of
this script goes on where it was, and once what all share is there, the learning rates too, several
may work on different seeds at once.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
import torch
from measurement import machine
from proof.arms import ARMS, COMPARISONS, Arm
from proof.running import best_rates, measure_cost, run_arm, searched
from proof.setting import FULL, QUICK, Setting
from rich.console import Console
from rich.table import Table

CURVES = {"label_loss": "label loss (nats)", "divergence_nats": "KL to teacher (nats)"}
STUDENT_T_95 = (math.nan, math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Two-sided, by the number of values."""
WIDTH = 100
"""Columns of the widest table: no figure is cut short for a narrow terminal, or a file."""


def collected(setting: Setting) -> dict[str, Any]:
    """What has been written down so far."""
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
    own, tuning = (_cost(setting, each) for each in (name, "fine-tuning"))
    finals = [run["final"] for run in runs]
    return {
        "name": name,
        "source": ARMS[name].source,
        "seeds": [run["seed"] for run in runs],
        "rates": runs[0]["rates"],
        "label_loss": _mean([final["label_loss"] for final in finals]),
        "divergence_nats": _mean([final["divergence_nats"] for final in finals]),
        "token_accuracy": _mean([final["token_accuracy"] for final in finals]),
        "exact_answers": _mean([final["by_kind"]["word"]["exact_answers"] for final in finals]),
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
    """Over the whole schedule; every arm ends with the same fine-tuning."""
    seconds = (
        own["step_seconds"] * setting.interaction_steps
        + tuning["step_seconds"] * setting.finetuning_steps
    )
    return float(seconds / setting.num_steps)


def _curve(runs: Sequence[dict[str, Any]], figure: str) -> dict[int, float]:
    """Means over the seeds, by step."""
    points: dict[int, list[float]] = {}
    for run in runs:
        for point in run["curve"]:
            points.setdefault(point["step"], []).append(point[figure])
    return {step: statistics.fmean(found) for step, found in points.items()}


def _difference(runs: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of one arm from another, over the seeds that both have."""
    finals, other_finals = ({run["seed"]: run["final"] for run in some} for some in (runs, others))
    seeds = sorted(finals.keys() & other_finals.keys())
    return {
        "name": runs[0]["arm"],
        "from": others[0]["arm"],
        "seeds": seeds,
        **{
            figure: _mean([finals[seed][figure] - other_finals[seed][figure] for seed in seeds])
            for figure in ("label_loss", "divergence_nats")
        },
    }


def _mean(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and half the 95 % interval, of which one value has none."""
    interval = None
    if len(values) > 1:
        t = STUDENT_T_95[min(len(values), len(STUDENT_T_95) - 1)]
        interval = t * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": statistics.fmean(values) if values else None, "interval": interval}


@dataclass(frozen=True)
class _Printed:
    """One table: its left columns are names, the others figures."""

    title: str
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]
    named: int = 1

    def print(self, console: Console) -> None:
        """For a terminal."""
        table = Table(title=self.title)
        for column, heading in enumerate(self.headings):
            side: Any = "left" if column < self.named else "right"
            table.add_column(heading.replace(" (", "\n("), justify=side, no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        console.print(table)

    def markdown(self) -> str:
        """For a page."""
        sides = ["---"] * self.named + ["---:"] * (len(self.headings) - self.named)
        lines = [self.headings, tuple(sides), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(result: dict[str, Any]) -> list[_Printed]:
    """The figures: scores, differences, costs, and the scores over the steps."""
    arms = result["arms"]
    found = [
        _Printed(
            "held-out conversations: means over seeds ± half the 95 % interval",
            (
                "arm",
                "seeds",
                "label loss (nats)",
                "KL to teacher (nats)",
                "tokens right",
                "minutes",
            ),
            [
                (
                    arm["name"],
                    str(len(arm["seeds"])),
                    _told(arm["label_loss"]),
                    _told(arm["divergence_nats"]),
                    _told(arm["token_accuracy"]),
                    f"{arm['wall_seconds'] / 60:.0f}",
                )
                for arm in arms
            ],
        ),
        _Printed(
            "differences, seed by seed",
            ("arm", "minus", "seeds", "label loss (nats)", "KL to teacher (nats)"),
            [
                (
                    difference["name"],
                    difference["from"],
                    str(len(difference["seeds"])),
                    _told(difference["label_loss"], sign="+"),
                    _told(difference["divergence_nats"], sign="+"),
                )
                for difference in result["differences"]
            ],
            named=2,
        ),
        _Printed(
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
                if arm["stage_step_seconds"]
            ],
        ),
        *(_over_the_steps(arms, figure) for figure in CURVES),
    ]
    return [table for table in found if table.rows]


def _over_the_steps(arms: Sequence[dict[str, Any]], figure: str) -> _Printed:
    curves = {arm["name"]: arm["curves"][figure] for arm in arms}
    steps = sorted({step for curve in curves.values() for step in curve})
    return _Printed(
        f"{CURVES[figure]} over the steps, of the first of these conversations",
        ("arm", *map(str, steps)),
        [
            (name, *(f"{curve[step]:.2f}" if step in curve else "" for step in steps))
            for name, curve in curves.items()
        ],
    )


def _told(figure: dict[str, Any], sign: str = "") -> str:
    if figure["mean"] is None:
        return ""
    interval = "" if figure["interval"] is None else f" ± {figure['interval']:.3f}"
    return f"{figure['mean']:{sign}.3f}{interval}"


@click.command(help=__doc__.splitlines()[0])
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option("--quick", is_flag=True, help="A small made-up teacher: a smoke of every arm.")
@click.option("--table", is_flag=True, help="Only print what has been collected.")
@click.option("--markdown", is_flag=True, help="Print the tables as Markdown.")
@click.option("--arms", default=",".join(ARMS), metavar="A,B,…", help="[default: all]")
@click.option("--seeds", metavar="I,J,…", help="[default: 0,1,2; 0 with --quick]")
@click.option("--costs", is_flag=True, help="Only measure step times and memory.")
@click.option("--device", default="cpu", hidden=True, help="Ignored: the proof is a CPU's.")
def main(
    as_json: bool,
    quick: bool,
    table: bool,
    markdown: bool,
    arms: str,
    seeds: str | None,
    costs: bool,
    device: str,  # noqa: ARG001
) -> None:
    setting = QUICK if quick else FULL
    chosen = [_named(name.strip()) for name in arms.split(",")]
    if quick and not table:
        shutil.rmtree(setting.folder, ignore_errors=True)  # a smoke is of the code as it is now
    if not table:
        setting.prepare([*chosen, *(searched(arm.family) for arm in chosen)])
    if not table and not costs:
        for seed in map(int, (seeds or ("0" if quick else "0,1,2")).split(",")):
            for arm in chosen:
                found = run_arm(setting, arm, seed, best_rates(setting, arm.family))
                click.echo(f"{arm.name} seed {seed}: {_finals(found)}", err=True)
    if costs or quick:
        for arm in {arm.name: arm for arm in (ARMS["fine-tuning"], *chosen)}.values():
            measure_cost(setting, arm)
    result = {
        **collected(setting),
        "size": {"setting": setting.name, "steps": setting.num_steps},
        "rounds": 1,
        **machine(torch.device("cpu")),
    }
    if as_json:
        click.echo(json.dumps(result, indent=2))
    elif markdown:
        for printed in tables(result):
            click.echo(f"{printed.title}\n\n{printed.markdown()}\n")
    else:
        console = Console()
        console.width = max(console.width, WIDTH)
        for printed in tables(result):
            printed.print(console)


def _named(name: str) -> Arm:
    if name not in ARMS:
        raise click.UsageError(f"no arm is named {name!r}; there are {', '.join(ARMS)}")
    return ARMS[name]


def _finals(run: dict[str, Any]) -> str:
    final = run["final"]
    return f"loss {final['label_loss']:.4f}, KL {final['divergence_nats']:.4f}"


if __name__ == "__main__":
    main()
