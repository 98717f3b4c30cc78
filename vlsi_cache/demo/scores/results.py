"""The demo's summary, from scores on held-out images that are made once and remembered."""

from __future__ import annotations

import json
import logging

from vlsi_cache.demo.dataset import answer_floor, load_questions
from vlsi_cache.demo.plan import Demo
from vlsi_cache.demo.progress import remember, remembered
from vlsi_cache.demo.scores.scoring import count_right_answers, held_out_divergence
from vlsi_cache.demo.table import (
    DemoAccuracy,
    DemoDivergence,
    DemoIntervals,
    DemoPaths,
    DemoSummary,
)
from vlsi_cache.evaluation.intervals import wilson_interval

__all__ = ["score_models", "summarize"]

logger = logging.getLogger(__name__)

Scores = dict[str, dict[str, float]]
"""For each model its number of right answers, and for a student its divergence too."""


def score_models(demo: Demo) -> Scores:
    """Score the teacher and both students on held-out images."""
    heldout = load_questions("test", demo.size.heldout_images)
    teacher = demo.pretrained("teacher")
    students = {"finetuned": demo.finetuned, "distilled": demo.distilled}
    path = demo.out / "scores.json"
    scores: Scores = remembered(path, {})
    for name, folder in {"teacher": teacher, **students}.items():
        if name not in scores:
            scores[name] = {"right": count_right_answers(folder, heldout)}
            if name in students:
                scores[name]["divergence"] = held_out_divergence(
                    teacher, folder, demo.data.heldout, limit=demo.size.divergence_samples
                )
            remember(path, scores)
        logger.info("%s: %d of %d right", name, scores[name]["right"], len(heldout))
    return scores


def summarize(demo: Demo, scores: Scores, seconds: float) -> DemoSummary:
    """Build the summary.

    Args:
        demo: A finished demo.
        scores: Scores of its models.
        seconds: Wall time of all its runs.
    """
    train = load_questions("train", demo.size.train_images)
    heldout = load_questions("test", demo.size.heldout_images)
    right = {name: int(score["right"]) for name, score in scores.items()}
    statistics = json.loads(demo.statistics.read_text(encoding="utf-8"))
    return DemoSummary(
        accuracy=DemoAccuracy(
            floor=answer_floor(train, heldout),
            **{name: count / len(heldout) for name, count in right.items()},
        ),
        accuracy_interval=DemoIntervals(
            **{name: wilson_interval(count, len(heldout)) for name, count in right.items()}
        ),
        divergence_nats=DemoDivergence(
            finetuned=scores["finetuned"]["divergence"],
            distilled=scores["distilled"]["divergence"],
        ),
        num_questions=len(heldout),
        student_steps=demo.size.student_steps,
        bytes_per_token_tap=statistics["bytes_per_token_tap"],
        paths=DemoPaths(
            cache=str(demo.cache),
            student=str(demo.distilled),
            statistics=str(demo.statistics),
            recipe=str(demo.recipe),
        ),
        seconds=seconds,
    )
