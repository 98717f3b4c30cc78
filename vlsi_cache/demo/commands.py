"""The recipe of the demo, and the commands that a user would run with it."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import yaml

from vlsi_cache.demo.plan import Demo, DemoSize
from vlsi_cache.demo.progress import remembered
from vlsi_cache.errors import StageError
from vlsi_cache.files import write_whole
from vlsi_cache.interruption import finishing_steps, stop_if_asked

__all__ = ["make_cache", "train_students", "write_recipe"]

logger = logging.getLogger(__name__)

_RECORD_WEIGHT = 9
"""Weight of the record beside the hurried answers' 1 in the distilled student's fine-tuning."""
_TAPS = {"inner_weight": 0.25, "inner_weight_of": "each", "inner_schedule": None}
"""The taps' weight with which the five pairs of docs/demo.md were measured."""


def write_recipe(demo: Demo) -> None:
    """Write the recipe of the teacher pass and of a pair of students."""
    text = yaml.safe_dump(_recipe(demo), sort_keys=False)
    demo.recipe.write_text(text, encoding="utf-8")


def make_cache(demo: Demo) -> None:
    """Train the teacher's verbalizers, and fill the cache.

    Then write its statistics, and a page of them and of what each layer says.
    """
    if demo.statistics.is_file() and demo.cache.is_dir():
        return
    _vlsi_cache("dump-teacher", "--recipe", demo.recipe)
    page = ("--html", demo.page)
    shown = _vlsi_cache("inspect", "--recipe", demo.recipe, *page, "--json", capture=True)
    write_whole(demo.statistics, shown)


def train_students(demo: Demo) -> None:
    """Distil one student from the cache, and fine-tune another for as many steps."""
    scores = remembered(demo.scores, {})
    if not (demo.distilled.is_dir() and "distilled" in scores):
        _vlsi_cache("train-student", "--recipe", demo.recipe)
    if not (demo.finetuned.is_dir() and "finetuned" in scores):
        _vlsi_cache(
            "train-student",
            *("--recipe", demo.recipe, "--stages", "finetuning", "--output", demo.finetuned_run),
            *("--finetuning-steps", demo.size.student_steps),
            *("--set", "finetuning.record_weight=0"),
        )


def _recipe(demo: Demo) -> dict[str, Any]:
    size = demo.size
    verbalization = _schedule(size, size.verbalization_steps, 1e-3)
    return {
        "teacher": {"model": str(demo.pretrained("teacher")), "verbalization": verbalization},
        "student": {"model": str(demo.pretrained("student")), "verbalization": verbalization},
        "data": {"path": str(demo.data.hurried), "limit": size.dumped_samples},
        "cache": {"path": str(demo.cache), "batch_size": size.batch_size},
        "interaction": {
            **_schedule(size, size.interaction_steps, 4e-3),
            "lora": {"rank": 64, "alpha": 64},
            **_TAPS,
        },
        "finetuning": {
            **_schedule(size, size.finetuning_steps, 2e-3),
            "train_vision_tower": False,
            "record_weight": _RECORD_WEIGHT,
        },
        "output": str(demo.run),
        "device": "cpu",
        "seed": demo.student_seed,
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


def _vlsi_cache(*arguments: object, capture: bool = False) -> str:
    """Run the installed command as a user would, in its own process."""
    command = [sys.executable, "-m", "vlsi_cache.cli", *map(str, arguments)]
    logger.info("$ vlsi-cache %s", " ".join(map(str, arguments)))
    # the demo's own stdout may carry one JSON object, so commands print on stderr
    with finishing_steps():  # the command has the signal too, and ends by itself
        done = subprocess.run(  # noqa: S603
            command, check=False, stdout=subprocess.PIPE if capture else sys.stderr, text=True
        )
    stop_if_asked(f"in {arguments[0]}")
    if done.returncode != 0:
        raise StageError(
            f"vlsi-cache {arguments[0]} failed with exit code {done.returncode}",
            mend="Its own message is above. Run the demo again to continue from there",
        )
    return done.stdout or ""
