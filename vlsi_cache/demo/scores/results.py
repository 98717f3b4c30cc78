"""The demo's summary, from scores on held-out images that are made once and remembered."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlsi_cache.demo.dataset import answer_floor, load_questions
from vlsi_cache.demo.plan import Demo
from vlsi_cache.demo.progress import Clock, remember, remembered
from vlsi_cache.demo.scores.divergence import held_out_divergence
from vlsi_cache.demo.table import (
    DemoAccuracy,
    DemoDivergence,
    DemoIntervals,
    DemoPair,
    DemoPaths,
    DemoSummary,
)
from vlsi_cache.evaluation import evaluate_model
from vlsi_cache.evaluation.intervals import difference_interval
from vlsi_cache.recipe import recipe_from_mapping

__all__ = ["score_pair", "score_teacher", "summarize"]

logger = logging.getLogger(__name__)

_LONGEST_ANSWER = 4
_BATCH = 128

Score = dict[str, Any]
"""The figures of a model's answers, and for a student its divergence too."""


def score_teacher(demo: Demo) -> Score:
    """Score the teacher on held-out images."""
    return _score(demo, "teacher", demo.pretrained("teacher"))


def score_pair(demo: Demo) -> DemoPair:
    """Score both students of a pair on held-out images."""
    finetuned = _score(demo, "finetuned", demo.finetuned)
    distilled = _score(demo, "distilled", demo.distilled)
    intervals = tuple(distilled["accuracy_interval"]), tuple(finetuned["accuracy_interval"])
    return DemoPair(
        seed=demo.student_seed,
        finetuned=finetuned["accuracy"],
        finetuned_interval=intervals[1],
        finetuned_nats=finetuned["divergence"],
        distilled=distilled["accuracy"],
        distilled_interval=intervals[0],
        distilled_nats=distilled["divergence"],
        gain=distilled["accuracy"] - finetuned["accuracy"],
        gain_interval=difference_interval(
            distilled["accuracy"], intervals[0], finetuned["accuracy"], intervals[1]
        ),
    )


def _score(demo: Demo, name: str, model: Path) -> Score:
    scores: dict[str, Score] = remembered(demo.scores, {})
    if name not in scores:
        found = _answers(demo, model)
        if name != "teacher":
            found["divergence"] = held_out_divergence(
                demo.pretrained("teacher"),
                model,
                demo.data.heldout,
                limit=demo.size.divergence_samples,
            )
        scores[name] = found
        remember(demo.scores, scores)
    logger.info("%s: %.1f %% right", name, 100 * scores[name]["accuracy"])
    return scores[name]


def _answers(demo: Demo, model: Path) -> Score:
    """Return the figures of a model's answers to the held-out questions, one turn each."""
    questions = demo.data.questions
    limit = demo.size.questions
    logger.info(
        "$ vlsi-cache evaluate %s --data %s --limit %d --generate %d --batch-size %d --device cpu",
        *(model, questions, limit, _LONGEST_ANSWER, _BATCH),
    )
    data = {"path": str(questions), "limit": limit}
    raw = {"student": {"model": str(model)}, "data": data, "device": "cpu"}
    found = evaluate_model(
        recipe_from_mapping(raw, where="demo"), max_new_tokens=_LONGEST_ANSWER, batch_size=_BATCH
    )
    return found.answers["all"].model_dump()


def summarize(demo: Demo, teacher: Score, pairs: Sequence[DemoPair], clock: Clock) -> DemoSummary:
    """Build the summary.

    Args:
        demo: A finished demo.
        teacher: Scores of its teacher.
        pairs: Scores of its students.
        clock: Time of all its runs. It stops here.
    """
    first = pairs[0]
    train = load_questions("train", demo.size.train_images)
    heldout = load_questions("test", demo.size.heldout_images)
    statistics = json.loads(demo.statistics.read_text(encoding="utf-8"))
    return DemoSummary(
        accuracy=DemoAccuracy(
            floor=answer_floor(train, heldout),
            teacher=teacher["accuracy"],
            finetuned=first.finetuned,
            distilled=first.distilled,
        ),
        accuracy_interval=DemoIntervals(
            teacher=tuple(teacher["accuracy_interval"]),
            finetuned=first.finetuned_interval,
            distilled=first.distilled_interval,
        ),
        gain=first.gain,
        gain_interval=first.gain_interval,
        divergence_nats=DemoDivergence(
            finetuned=first.finetuned_nats, distilled=first.distilled_nats
        ),
        pairs=list(pairs),
        num_questions=teacher["count"],
        student_steps=demo.size.student_steps,
        bytes_per_token_tap=statistics["bytes_per_token_tap"],
        paths=_paths(demo),
        **clock.stop(),
    )


def _paths(demo: Demo) -> DemoPaths:
    return DemoPaths(
        cache=str(demo.cache),
        student=str(demo.distilled),
        statistics=str(demo.statistics),
        page=str(demo.page),
        recipe=str(demo.recipe),
    )
