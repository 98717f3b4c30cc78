"""What a student learns from our record, against whole distributions and other ways.

The teacher is SmolLM2-135M-Instruct, the student some of its blocks. All arms (`arms.py`) start
alike and take as many steps of as many samples. They distil, then fine-tune on the labels. One arm
only fine-tunes. Learning rates come from short runs scored on validation. Held-out conversations
are scored by whole distributions.

Every result is written to a file, and a result with a file is not made again. So an interrupted
script continues where it stopped. Several may work on different seeds at once, as soon as the
shared parts and the learning rates are there.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

# a script finds only its own folder, and harness and material lie above it
sys.path.insert(0, str(Path(__file__).parents[2]))

from harness import benchmark

from experiments.first_proof.arms import ARMS, Arm
from experiments.first_proof.running import best_rates, measure_cost, run_arm, searched
from experiments.first_proof.setting import FULL, QUICK, Setting
from experiments.first_proof.summary import summarize
from experiments.first_proof.tables import tables


@click.option("--table", is_flag=True, help="Only print the results that are there.")
@click.option("--arms", default=",".join(ARMS), metavar="A,B,…", help="[default: all]")
@click.option("--seeds", metavar="I,J,…", help="[default: 0,1,2; 0 with --quick]")
@click.option("--costs", is_flag=True, help="Only measure step times and memory.")
def measure(
    setting: Setting, *, table: bool, arms: str, seeds: str | None, costs: bool
) -> dict[str, Any]:
    """Make the missing runs and costs, and summarize all."""
    chosen = [_named(name.strip()) for name in arms.split(",")]
    if not table:
        if setting.made_up:
            shutil.rmtree(setting.folder, ignore_errors=True)  # a smoke tests the code of now
        setting.prepare([*chosen, *(searched(arm.family) for arm in chosen)])
        if not costs:
            _run(setting, chosen, seeds or ("0" if setting.made_up else "0,1,2"))
    if costs or setting.made_up:
        for arm in {arm.name: arm for arm in (ARMS["fine-tuning"], *chosen)}.values():
            measure_cost(setting, arm)
    return {
        **summarize(setting),
        "size": {"setting": setting.name, "steps": setting.num_steps},
    }


def _run(setting: Setting, arms: Sequence[Arm], seeds: str) -> None:
    for seed in map(int, seeds.split(",")):
        for arm in arms:
            final = run_arm(setting, arm, seed, best_rates(setting, arm.family))["final"]
            click.echo(
                f"{arm.name} seed {seed}: loss {final['label_loss']:.4f}, "
                f"KL {final['divergence_nats']:.4f}",
                err=True,
            )


def _named(name: str) -> Arm:
    if name not in ARMS:
        raise click.UsageError(f"{name!r} is not an arm. The arms are {', '.join(ARMS)}")
    return ARMS[name]


main = benchmark(measure, tables, full=FULL, quick=QUICK, rounds=None, on_cpu=True)

if __name__ == "__main__":
    main()
