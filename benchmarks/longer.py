"""Whether a recorded hidden state still pays a student in longer runs.

Question: E6 of `worth.py` saw a hidden state pay 0.09 nats in 120 steps. What remains of it after
millions of response tokens?

Setting: SmolLM2-135M-Instruct teaches its own cut, whose whole blocks train. The teacher samples
the answers itself, and is dumped once. Students of two arms learn over several seeds: from the
output alone, and from the output and the hidden state. Short runs come first, with a schedule of
their own. Their pace decides how long the long runs are, so that all end within the budget. The
figure is the exact KL(teacher ‖ student) on held-out conversations: hidden minus output, seed by
seed.

Prediction: the difference shrinks to a few hundredths of a nat. Its bounds lie in
`experiments/longer/prediction.py`, and were written down before any run.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from experiments.first_proof.cut import cut_blocks
from experiments.longer.commands import Clock, end_gently
from experiments.longer.making import answer
from experiments.longer.material import find_material, make_material
from experiments.longer.scoring import score
from experiments.longer.setting import FULL, QUICK, Setting
from experiments.longer.summary import summarize, tables
from experiments.longer.training import Trainer
from harness import benchmark, machine

RESULTS = Path(__file__).parent / "results" / "longer"


def _only_make_material(context: click.Context, _: click.Parameter, folder: Path | None) -> None:
    if folder is not None:
        make_material(folder)
        context.exit()


@click.option(
    "--make-material",
    type=click.Path(path_type=Path, file_okay=False),
    callback=_only_make_material,
    expose_value=False,
    is_eager=True,
    help="Only write the folder for --material.",
)
@click.option(
    "--material",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder with teacher/ and prompts.jsonl, where nothing can be downloaded.",
)
@click.option("--seeds", type=click.IntRange(min=1), help="Number of seeds.  [default: 3]")
@click.option(
    "--budget",
    type=click.FloatRange(min=100),
    help="Seconds for the dump and all trainings.  [default: 270]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the result.  [default: benchmarks/results/longer for a whole one]",
)
def measure(
    setting: Setting,
    *,
    device: torch.device,
    material: Path | None,
    seeds: int | None,
    budget: float | None,
    out: Path | None,
) -> dict[str, Any]:
    """Sample, dump, train and score. What is known is written down, however it ends."""
    end_gently()
    setting = replace(setting, seeds=seeds or setting.seeds, budget=budget or setting.budget)
    shutil.rmtree(setting.folder, ignore_errors=True)  # a measurement tests the code of now
    setting.folder.mkdir(parents=True)
    given = find_material(setting, material)
    cut_blocks(given.teacher, setting.student, setting.student_blocks)
    trainer = Trainer(setting, given.teacher, answer(setting, given, device), device, Clock())
    scores: dict[str, dict[str, float]] = {}
    try:
        trainer.dump()
        trainer.train_short()
        trainer.train_long()
        scores = score(setting, given.teacher, trainer.runs, device)
    finally:
        result = {**summarize(trainer.runs, scores, setting.short_tokens), **_about(trainer)}
        is_whole = len(scores) == len(trainer.runs) + 1 and not setting.made_up
        _write(out or (RESULTS if is_whole else setting.folder), result)
    return result


def _about(trainer: Trainer) -> dict[str, Any]:
    setting, answers = trainer.setting, trainer.answers
    return {
        "size": {
            "setting": setting.name,
            "conversations": answers.conversations,
            "answer_tokens": answers.tokens,
            "held_out_part": trainer.part,
            "budget_seconds": setting.budget,
        },
        "date": time.strftime("%Y-%m-%d"),
        "transformers": transformers.__version__,
        **machine(trainer.device),
    }


def _write(folder: Path, result: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    device = re.sub(r"\W+", "-", result["device"].lower())
    path = folder / f"{device}-{result['date']}.json"
    click.echo(f"written to {path}", err=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


main = benchmark(measure, tables, full=FULL, quick=QUICK, rounds=None)

if __name__ == "__main__":
    main()
