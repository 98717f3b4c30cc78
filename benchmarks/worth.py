"""What learning from layers is worth: exits, early harm, other targets, the record in stage three.

The arms and the predictions lie in `experiments/worth`. The setting is the first proof's: a cut of
SmolLM2 that learns from its teacher's cache. Held-out conversations are new ones, which no setting
was chosen on. A result that is written down is not made again.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import click
from experiments.first_proof.arms import ARMS as PROOF_ARMS
from experiments.first_proof.setting import FULL, QUICK, Setting
from experiments.worth.arms import ARMS
from experiments.worth.figure import draw
from experiments.worth.running import run_arm
from experiments.worth.summary import summarize
from experiments.worth.tables import tables
from harness import benchmark


@click.option("--table", is_flag=True, help="Only print the results that are there.")
@click.option("--figure", type=click.Path(path_type=Path), help="Draw the differences as SVG.")
@click.option("--arms", default=",".join(ARMS), metavar="A,B,…", help="[default: all]")
@click.option("--seeds", default="10,11,12", metavar="I,J,…", show_default=True)
@click.option("--only-distilled", is_flag=True, help="Train no exits, and fine-tune nothing.")
def measure(
    setting: Setting,
    *,
    table: bool,
    figure: Path | None,
    arms: str,
    seeds: str,
    only_distilled: bool,
) -> dict[str, Any]:
    """Make the missing runs, and summarize all."""
    chosen = [_named(name.strip()) for name in arms.split(",")]
    if not table:
        if setting.made_up:
            shutil.rmtree(setting.folder, ignore_errors=True)  # a smoke tests the code of now
            seeds = "10"
        setting.prepare([PROOF_ARMS["full-quarter"]])
        setting.dump(sorted({ARMS[name].cache for name in chosen}))
        if any(ARMS[name].starts_random and ARMS[name].reads_taps for name in chosen):
            setting.verbalize_student(starts_random=True)
        for seed in map(int, seeds.split(",")):
            for name in chosen:
                run_arm(setting, ARMS[name], seed, only_distilled=only_distilled)
                click.echo(f"{name}, seed {seed}: done", err=True)
    result = summarize(setting)
    if figure is not None:
        figure.write_text(draw(result), encoding="utf-8")
    return {**result, "size": {"setting": setting.name, "steps": setting.interaction_steps}}


def _named(name: str) -> str:
    if name not in ARMS:
        raise click.UsageError(f"{name!r} is not an arm. The arms are {', '.join(ARMS)}")
    return name


main = benchmark(measure, tables, full=FULL, quick=QUICK, rounds=None, on_cpu=True)

if __name__ == "__main__":
    main()
