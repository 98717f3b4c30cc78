"""The demo from end to end: its models, then the public road by the three commands, then scores."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vlsi_cache.demo.dataset import DemoData, answer_floor, load_questions, prepare_data
from vlsi_cache.demo.intervals import wilson_interval
from vlsi_cache.demo.models import build_processor, save_untrained, share_vision_tower
from vlsi_cache.demo.scoring import count_right_answers, held_out_divergence
from vlsi_cache.demo.table import (
    DemoAccuracy,
    DemoDivergence,
    DemoIntervals,
    DemoPaths,
    DemoSummary,
)
from vlsi_cache.demo.training import train_from_scratch
from vlsi_cache.errors import StageError

__all__ = ["FULL", "QUICK", "DemoSize", "run_demo"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DemoSize:
    """How much of everything the demo takes."""

    train_images: int
    heldout_images: int
    teacher_steps: int
    pretraining_steps: int
    verbalization_steps: int
    interaction_steps: int
    finetuning_steps: int
    dumped_samples: int
    batch_size: int
    divergence_samples: int

    @property
    def student_steps(self) -> int:
        """Steps that move the student's own weights, in both arms."""
        return self.interaction_steps + self.finetuning_steps


FULL = DemoSize(
    train_images=4000,
    heldout_images=500,
    teacher_steps=600,
    pretraining_steps=120,
    verbalization_steps=100,
    interaction_steps=280,
    finetuning_steps=120,
    dumped_samples=2048,
    batch_size=32,
    divergence_samples=500,
)
QUICK = DemoSize(
    train_images=32,
    heldout_images=8,
    teacher_steps=3,
    pretraining_steps=3,
    verbalization_steps=3,
    interaction_steps=3,
    finetuning_steps=3,
    dumped_samples=48,
    batch_size=8,
    divergence_samples=16,
)

_TEACHER_BLOCKS = 8
_STUDENT_BLOCKS = 4
_HIDDEN = 96


def run_demo(out: Path, size: DemoSize, *, seed: int = 0) -> DemoSummary:
    """Run, or go on with, the demo in ``out``.

    Args:
        out: folder of everything.
        size: ``FULL`` or ``QUICK``.
        seed: of everything random.

    Raises:
        StageError: a command failed, or ``out`` holds a demo of another size.
    """
    out.mkdir(parents=True, exist_ok=True)
    clock = _Clock(out / "demo-seconds.json")
    _prove_same_size(out, size)
    data = _prepare(out, size, seed)
    _say("1/4  training teacher and student from scratch")
    teacher, student = _pretrain(out, size, data, seed)
    recipe = _write_recipe(out / "recipe.yaml", _recipe(out, size, data, teacher, student, seed))
    _say("2/4  teacher pass: verbalizers, then the cache")
    _vlsi_cache("dump-teacher", "--recipe", recipe)
    _say("3/4  students: distilled from the cache, and fine-tuned only")
    _vlsi_cache("train-student", "--recipe", recipe)
    _vlsi_cache(
        "train-student",
        *("--recipe", recipe, "--stages", "finetuning", "--output", out / "finetuned-only"),
        *("--finetuning-steps", size.student_steps),
    )
    statistics = out / "cache-statistics.json"
    inspected = _vlsi_cache("inspect", out / "cache", "--json", capture=True)
    statistics.write_text(inspected, encoding="utf-8")
    _say("4/4  scores on held-out images")
    students = {
        "finetuned": out / "finetuned-only" / "student",
        "distilled": out / "student",
    }
    paths = DemoPaths(
        cache=str(out / "cache"),
        student=str(students["distilled"]),
        statistics=str(statistics),
        recipe=str(recipe),
    )
    scores = _scores(out, size, data, teacher, students)
    return DemoSummary(
        **scores,
        student_steps=size.student_steps,
        bytes_per_token_tap=json.loads(inspected)["bytes_per_token_tap"],
        paths=paths,
        seconds=clock.stop(),
    )


def _prepare(out: Path, size: DemoSize, seed: int) -> DemoData:
    data = prepare_data(
        out / "data", num_train=size.train_images, num_heldout=size.heldout_images, seed=seed
    )
    words = load_questions("train", size.train_images)
    texts = [text for question in words for text in (question.text, question.answer)]
    processor = build_processor(texts)
    for name, num_blocks in (("teacher", _TEACHER_BLOCKS), ("student", _STUDENT_BLOCKS)):
        save_untrained(
            out / "untrained" / name,
            processor,
            num_blocks=num_blocks,
            hidden_size=_HIDDEN,
            seed=seed,
        )
    return data


def _pretrain(out: Path, size: DemoSize, data: DemoData, seed: int) -> tuple[Path, Path]:
    """Train the teacher until it is good; the student a little, as a base model to improve."""

    def train(name: str, untrained: Path, steps: int) -> Path:
        return train_from_scratch(
            untrained,
            data.train,
            out / "from-scratch" / name,
            steps=steps,
            batch_size=size.batch_size,
            seed=seed,
        )

    teacher = train("teacher", out / "untrained" / "teacher", size.teacher_steps)
    seeing = share_vision_tower(out / "untrained" / "student", teacher, out / "seeing-student")
    return teacher, train("student", seeing, size.pretraining_steps)


def _recipe(
    out: Path, size: DemoSize, data: DemoData, teacher: Path, student: Path, seed: int
) -> dict[str, Any]:
    verbalization = _schedule(size, size.verbalization_steps, 1e-3)
    return {
        "teacher": {"model": str(teacher), "verbalization": verbalization},
        "student": {"model": str(student), "verbalization": verbalization},
        "data": {"path": str(data.train), "limit": size.dumped_samples},
        "cache": {"batch_size": size.batch_size},
        "interaction": {
            **_schedule(size, size.interaction_steps, 4e-3),
            "lora": {"rank": 64, "alpha": 64},
        },
        "finetuning": {
            **_schedule(size, size.finetuning_steps, 5e-4),
            "train_vision_tower": False,
        },
        "output": str(out),
        "device": "cpu",
        "seed": seed,
    }


def _schedule(size: DemoSize, steps: int, learning_rate: float) -> dict[str, Any]:
    return {
        "steps": steps,
        "batch_size": size.batch_size,
        "learning_rate": learning_rate,
        "warmup_steps": min(30, steps // 3),
        "log_every": 50,
        "save_every": 100,
    }


def _scores(
    out: Path, size: DemoSize, data: DemoData, teacher: Path, students: dict[str, Path]
) -> dict[str, Any]:
    """Accuracy, intervals and divergences; each model is scored once and remembered."""
    heldout = load_questions("test", size.heldout_images)
    models = {"teacher": teacher, **students}
    path = out / "scores.json"
    known: dict[str, dict[str, float]] = (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    )
    for name, folder in models.items():
        if name not in known:
            right = count_right_answers(folder, heldout)
            known[name] = {"right": right}
            if name in students:
                known[name]["divergence"] = held_out_divergence(
                    teacher, folder, data.heldout, limit=size.divergence_samples
                )
            path.write_text(json.dumps(known, indent=2), encoding="utf-8")
        logger.info("%s: %d of %d right", name, known[name]["right"], len(heldout))
    num_right = {name: int(score["right"]) for name, score in known.items()}
    return {
        "accuracy": DemoAccuracy(
            floor=answer_floor(load_questions("train", size.train_images), heldout),
            **{name: count / len(heldout) for name, count in num_right.items()},
        ),
        "accuracy_interval": DemoIntervals(
            **{name: wilson_interval(count, len(heldout)) for name, count in num_right.items()}
        ),
        "divergence_nats": DemoDivergence(**{name: known[name]["divergence"] for name in students}),
        "num_questions": len(heldout),
    }


def _vlsi_cache(*arguments: object, capture: bool = False) -> str:
    """Run the installed command as a user would, in its own process."""
    command = [sys.executable, "-m", "vlsi_cache.cli", *map(str, arguments)]
    logger.info("$ vlsi-cache %s", " ".join(map(str, arguments)))
    # the demo's own stdout may carry one JSON object, so commands speak on stderr
    done = subprocess.run(  # noqa: S603
        command, check=False, stdout=subprocess.PIPE if capture else sys.stderr, text=True
    )
    if done.returncode != 0:
        raise StageError(
            f"vlsi-cache {arguments[0]} failed with exit code {done.returncode}",
            mend="Its own message stands above; run the demo again to go on from there",
        )
    return done.stdout or ""


def _write_recipe(path: Path, recipe: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def _prove_same_size(out: Path, size: DemoSize) -> None:
    path, text = out / "demo-size.txt", repr(size)
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise StageError(
            "this folder holds a demo of another size",
            where=out,
            mend="Choose another --out, or delete this folder",
        )
    path.write_text(text, encoding="utf-8")


def _say(step: str) -> None:
    logger.info("\n== %s", step)


class _Clock:
    """Wall seconds, summed over the runs that a resumed demo takes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started = time.monotonic()
        self.earlier = float(json.loads(path.read_text())) if path.is_file() else 0.0

    def stop(self) -> float:
        seconds = self.earlier + time.monotonic() - self.started
        self.path.write_text(json.dumps(seconds), encoding="utf-8")
        return seconds
