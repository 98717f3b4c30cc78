"""Where stage one starts: the closed form against the logit lens, as steps and core-minutes.

Each row is a stage one of its own, run by the product: the teacher SmolLM2-135M with its seven
taps, and a student cut from it with its six. The loss is that of held-out labels, a mean over taps.
"""

from __future__ import annotations

import logging
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments.first_proof.cut import cut_blocks
from harness import PrintedTable, benchmark
from material import assets
from material.made_up import save_small_model, write_letters
from material.teacher import encoded_batches

from vlsi_cache.models import Backbone, load_backbone, run_backbone
from vlsi_cache.objectives import linear_cross_entropy
from vlsi_cache.recipe import Recipe, recipe_from_mapping
from vlsi_cache.training import begin_run
from vlsi_cache.verbalizer import VerbalizerBank, obtain_verbalizers

_DROPPED = range(14, 19)
"""Blocks of the teacher that the student lacks, as in the checks of the default rates."""


@dataclass(frozen=True)
class Size:
    """The runs of each model, and how many samples there are."""

    samples: int = 600
    held_out: int = 40
    real: bool = True
    steps: tuple[tuple[str, int], ...] = (
        ("ridge", 1),
        ("ridge", 15),
        ("logit_lens", 15),
        ("logit_lens", 60),
    )


QUICK = Size(24, 8, real=False, steps=(("ridge", 1), ("logit_lens", 2)))


def measure(size: Size) -> dict[str, Any]:
    """Run stage one from both starts on both models."""
    torch.set_num_threads(1)
    logging.getLogger("vlsi_cache").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        models = _models(size, folder)
        data = _data(size, folder)
        rows = [
            {"model": name, **_run(size, model, data, start, steps)}
            for name, model in models.items()
            for start, steps in size.steps
        ]
    named = {f"{row['model']}_{row['start']}_{row['steps']}": row for row in rows}
    figures = {
        f"{name}_{figure}": row[figure]
        for name, row in named.items()
        for figure in ("core_minutes", "mean_nats")
    }
    return {"size": asdict(size), "rows": rows, **figures}


def _models(size: Size, folder: Path) -> dict[str, Path]:
    if not size.real:
        save_small_model(folder / "teacher", 4)
        return {"teacher": folder / "teacher"}
    teacher = assets.smollm2()
    kept = [block for block in range(30) if block not in _DROPPED]
    cut_blocks(teacher, folder / "student", kept)
    return {"teacher": teacher, "student": folder / "student"}


def _data(size: Size, folder: Path) -> tuple[Path, Path]:
    if not size.real:
        return (write_letters(folder / "a.jsonl", size.samples),) * 2
    return assets.text(size.samples), assets.text(600, held_out=True)


def _run(
    size: Size, model: Path, data: tuple[Path, Path], start: str, steps: int
) -> dict[str, Any]:
    """Run one stage one, and read held-out samples with what came of it."""
    with tempfile.TemporaryDirectory() as output:
        recipe = recipe_from_mapping(
            {
                "teacher": {
                    "model": str(model),
                    "dtype": "float32",
                    "verbalizer": {"start": start},
                    "verbalization": {"steps": steps},
                },
                "data": {"path": str(data[0])},
                "output": output,
                "device": "cpu",
            },
            where="benchmarks/stage_one.py",
        )
        run = begin_run(recipe, "teacher")
        backbone = load_backbone(recipe.teacher, "teacher", run.device)
        began = time.process_time()
        bank = obtain_verbalizers(run, recipe.teacher, backbone, recipe.teacher_verbalizers_path)
        minutes = (time.process_time() - began) / 60
    losses = _held_out(backbone, bank, recipe, data[1], size.held_out)
    return {
        "start": start,
        "steps": steps,
        "core_minutes": minutes,
        "taps": losses,
        "mean_nats": float(np.mean(list(losses.values()))),
    }


@torch.no_grad()
def _held_out(
    backbone: Backbone, bank: VerbalizerBank, recipe: Recipe, path: Path, samples: int
) -> dict[int, float]:
    """Return each tap's loss of the held-out labels, in nats."""
    section = recipe.data.model_copy(update={"path": str(path)})
    sums = dict.fromkeys(bank.taps, 0.0)
    count = 0
    for batch in encoded_batches(backbone, section, samples):
        positions, labels = batch["positions"], batch["labels"]
        states, _ = run_backbone(backbone.decoder, bank.taps, batch["inputs"], positions)
        for tap, read in bank(states, positions).items():
            features = backbone.decoder.features(read)
            sums[tap] += float(linear_cross_entropy(features, backbone.head, labels))
        count += len(labels)
    return {tap: total / count for tap, total in sums.items()}


def tables(result: dict[str, Any]) -> list[PrintedTable]:
    """Build the table of all runs."""
    rows = [
        (
            row["model"],
            row["start"],
            f"{row['steps']}",
            f"{row['core_minutes']:.2f}",
            f"{row['mean_nats']:.2f}",
            " ".join(f"{nats:.2f}" for nats in row["taps"].values()),
        )
        for row in result["rows"]
    ]
    headings = ("model", "start", "steps", "core-minutes", "mean (nats)", "taps (nats)")
    return [PrintedTable("Stage one by its start", headings, rows, named=2)]


if __name__ == "__main__":
    benchmark(measure, tables, full=Size(), quick=QUICK, rounds=None, on_cpu=True)()
