"""The demo from end to end: its models, the commands, then the scores."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from vlsi_cache.demo.commands import make_cache, train_students, write_recipe
from vlsi_cache.demo.plan import Demo
from vlsi_cache.demo.pretraining import prepare, pretrain_student, pretrain_teacher
from vlsi_cache.demo.progress import Clock, validate_same_demo
from vlsi_cache.demo.scores.results import score_pair, score_teacher, summarize
from vlsi_cache.demo.table import DemoSummary

__all__ = ["run_demo"]

logger = logging.getLogger(__name__)


def run_demo(demo: Demo, num_pairs: int = 1) -> DemoSummary:
    """Run a demo, or continue it where an earlier run stopped.

    Args:
        demo: The demo.
        num_pairs: Number of pairs of students, a distilled and a fine-tuned one each.

    Raises:
        StageError: A command failed, or the folder holds a demo of another size or seed.
    """
    clock = _start(demo)
    pairs = [replace(demo, pair=index) for index in range(num_pairs)]
    _make_models(demo, pairs)
    _make_cache(demo)
    _make_students(pairs)
    return _score(demo, pairs, clock)


def _start(demo: Demo) -> Clock:
    demo.out.mkdir(parents=True, exist_ok=True)
    validate_same_demo(demo)
    return Clock(demo.out / "demo-seconds.json")


def _make_models(demo: Demo, pairs: Sequence[Demo]) -> None:
    prepare(demo)
    _say("1/4  training teacher and student from scratch")
    pretrain_teacher(demo)
    for pair in pairs:
        pretrain_student(pair)
        write_recipe(pair)


def _make_cache(demo: Demo) -> None:
    _say("2/4  teacher pass: verbalizers, then the cache")
    make_cache(demo)


def _make_students(pairs: Sequence[Demo]) -> None:
    _say("3/4  students: distilled from the cache, and fine-tuned only")
    for pair in pairs:
        train_students(pair)


def _score(demo: Demo, pairs: Sequence[Demo], clock: Clock) -> DemoSummary:
    _say("4/4  scores on held-out images")
    teacher = score_teacher(demo)
    scores = [score_pair(pair) for pair in pairs]
    return summarize(demo, teacher, scores, clock)


def _say(step: str) -> None:
    logger.info("\n== %s", step)
