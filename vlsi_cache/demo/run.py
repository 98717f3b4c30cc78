"""The demo from end to end: its models, the commands, then the scores."""

from __future__ import annotations

import logging

from vlsi_cache.demo.commands import inspect_cache, make_cache, train_students, write_recipe
from vlsi_cache.demo.plan import Demo
from vlsi_cache.demo.pretraining import prepare, pretrain
from vlsi_cache.demo.progress import Clock, validate_same_size
from vlsi_cache.demo.scores.results import score_models, summarize
from vlsi_cache.demo.table import DemoSummary

__all__ = ["run_demo"]

logger = logging.getLogger(__name__)


def run_demo(demo: Demo) -> DemoSummary:
    """Run a demo, or continue it where an earlier run stopped.

    Raises:
        StageError: A command failed, or the folder holds a demo of another size.
    """
    clock = _start(demo)
    _make_models(demo)
    _make_cache(demo)
    _make_students(demo)
    return _score(demo, clock)


def _start(demo: Demo) -> Clock:
    demo.out.mkdir(parents=True, exist_ok=True)
    validate_same_size(demo)
    return Clock(demo.out / "demo-seconds.json")


def _make_models(demo: Demo) -> None:
    prepare(demo)
    _say("1/4  training teacher and student from scratch")
    pretrain(demo)
    write_recipe(demo)


def _make_cache(demo: Demo) -> None:
    _say("2/4  teacher pass: verbalizers, then the cache")
    make_cache(demo)


def _make_students(demo: Demo) -> None:
    _say("3/4  students: distilled from the cache, and fine-tuned only")
    train_students(demo)
    inspect_cache(demo)


def _score(demo: Demo, clock: Clock) -> DemoSummary:
    _say("4/4  scores on held-out images")
    scores = score_models(demo)
    return summarize(demo, scores, clock.stop())


def _say(step: str) -> None:
    logger.info("\n== %s", step)
