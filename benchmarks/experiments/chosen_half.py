"""Half the data, equal steps: samples chosen by the teacher's loss against all of them.

The student learns the teacher's output from a cache (`interaction.inner: none`). Every arm takes as
many steps of as many samples, so a half is seen twice where the whole is seen once. Held-out
conversations are scored by whole distributions. A run with a file of its own is not made again.

    python benchmarks/experiments/chosen_half.py TEACHER STUDENT TRAIN HELD CACHE OUT
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any, Final

import click
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from vlsi_cache import open_cache, train_student
from vlsi_cache.recipe import recipe_from_mapping

ARMS: Final = ("all", "highest", "middle", "lowest")
"""All samples, or the half whose teacher's loss is so."""


@click.command()
@click.argument("teacher")
@click.argument("student")
@click.argument("train", type=click.Path(exists=True))
@click.argument("held", type=click.Path(exists=True))
@click.argument("cache", type=click.Path(exists=True))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--seeds", default="0,1", metavar="I,J,…", show_default=True)
@click.option("--steps", default=20, show_default=True, help="Steps of 8 samples.")
@click.option("--conversations", default=96, show_default=True, help="Last held-out ones to score.")
def main(out: Path, seeds: str, conversations: int, **given: Any) -> None:
    """Make the missing runs, and print their figures."""
    for seed in map(int, seeds.split(",")):
        for arm in ARMS:
            result = out / f"{arm}-{seed}.json"
            if not result.exists():
                run_arm(arm, seed, out / f"{arm}-{seed}", given)
                found = score(given, out / f"{arm}-{seed}", conversations)
                result.write_text(json.dumps(found) + "\n", encoding="utf-8")
    print_table(out)


def run_arm(arm: str, seed: int, folder: Path, given: dict[str, Any]) -> None:
    """Train one student."""
    data: dict[str, Any] = {"path": given["train"], "limit": len(open_cache(given["cache"]))}
    if arm != "all":
        data["select"] = {"by": "teacher_loss", "keep": 0.5, "order": arm}
    raw = {
        "student": {"model": given["student"], "dtype": "float32"},
        "data": data,
        "cache": {"path": given["cache"]},
        "interaction": {"inner": "none", "steps": given["steps"], "workers": 0},
        "stages": ["interaction"],
        "output": str(folder),
        "device": "cpu",
        "seed": seed,
    }
    train_student(recipe_from_mapping(raw, where="chosen_half"))


def score(given: dict[str, Any], folder: Path, conversations: int) -> dict[str, float]:
    """Return label loss and KL(teacher ‖ student) of the held-out conversations, in nats."""
    teacher, student = map(load, (given["teacher"], str(folder / "interaction" / "model")))
    label = divergence = tokens = 0.0
    for ids, start in encoded(given, conversations):
        with torch.no_grad():
            wanted, found = (log_probs(model, ids, start) for model in (teacher, student))
        answers = ids[0, start:]
        label -= float(found.gather(1, answers[:, None]).sum())
        divergence += float((wanted.exp() * (wanted - found)).sum())
        tokens += len(answers)
    return {"label_nats": label / tokens, "kl_nats": divergence / tokens, "tokens": tokens}


def load(name: str) -> Any:
    """Load a model in float32."""
    return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()


def log_probs(model: Any, ids: Tensor, start: int) -> Tensor:
    """Return the log-probabilities at the positions that predict the answer, ``[N, V]``."""
    logits: Tensor = model(ids).logits[0, start - 1 : -1]
    return logits.log_softmax(-1)


def encoded(given: dict[str, Any], conversations: int) -> Iterator[tuple[Tensor, int]]:
    """Yield each held-out conversation's tokens, and where its answer begins."""
    tokenizer: Any = AutoTokenizer.from_pretrained(given["teacher"])
    for line in Path(given["held"]).read_text(encoding="utf-8").splitlines()[-conversations:]:
        messages = json.loads(line)["messages"]
        asked = tokenizer.apply_chat_template(
            messages[:-1], tokenize=False, add_generation_prompt=True
        )
        whole = tokenizer.apply_chat_template(messages, tokenize=False).rstrip("\n")
        ids, prompt = (tokenizer(text, add_special_tokens=False) for text in (whole, asked))
        yield torch.tensor([ids["input_ids"]]), len(prompt["input_ids"])


def print_table(out: Path) -> None:
    """Print the mean of each arm, and each seed's difference from all samples."""
    runs = {path.stem: json.loads(path.read_bytes()) for path in sorted(out.glob("*.json"))}
    for arm in ARMS:
        seeds = sorted(name.split("-")[1] for name in runs if name.startswith(f"{arm}-"))
        for figure in ("label_nats", "kl_nats"):
            values = [runs[f"{arm}-{seed}"][figure] for seed in seeds]
            minus = [runs[f"{arm}-{seed}"][figure] - runs[f"all-{seed}"][figure] for seed in seeds]
            each = ", ".join(f"{value:+.3f}" for value in minus)
            sys.stdout.write(f"{arm:8} {figure:10} {mean(values):.3f}  minus all: {each}\n")


if __name__ == "__main__":
    main()
