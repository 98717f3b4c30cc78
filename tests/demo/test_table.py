"""The demo's result, for people and for programs."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from rich.console import Console

from vlsi_cache.demo.table import (
    DemoAccuracy,
    DemoDivergence,
    DemoIntervals,
    DemoPaths,
    DemoSummary,
    demo_table,
)


def _summary(
    finetuned: tuple[float, float] = (0.78, 0.82),
    distilled: tuple[float, float] = (0.79, 0.83),
    divergence: tuple[float, float] = (0.2, 0.1),
) -> DemoSummary:
    """Build a run's summary with the given intervals and divergences."""
    return DemoSummary(
        accuracy=DemoAccuracy(
            floor=0.6701,
            teacher=0.9123,
            finetuned=sum(finetuned) / 2,
            distilled=sum(distilled) / 2,
        ),
        accuracy_interval=DemoIntervals(
            teacher=(0.9041, 0.9199), finetuned=finetuned, distilled=distilled
        ),
        divergence_nats=DemoDivergence(finetuned=divergence[0], distilled=divergence[1]),
        num_questions=4836,
        student_steps=180,
        bytes_per_token_tap=23.45,
        paths=DemoPaths(cache="out/cache", student="out/student", statistics="s", recipe="r"),
        seconds=612.4,
    )


def _text(summary: DemoSummary) -> str:
    console = Console(width=80, force_terminal=False)
    with console.capture() as capture:
        console.print(demo_table(summary))
    return capture.get()


def test_the_table_shows_every_figure_within_eighty_columns() -> None:
    text = _text(_summary())
    assert max(len(line) for line in text.splitlines()) <= 80
    for figure in ("67.0%", "91.2%", "90.4% – 92.0%", "80.0%", "81.0%", "0.2000", "0.1000"):
        assert figure in text
    for fact in ("4836 questions", "180 steps", "23.4", "612 s", "out/cache", "out/student"):
        assert fact in " ".join(text.split())
    assert "…" not in text


@pytest.mark.parametrize(
    ("finetuned", "distilled", "verdict"),
    [
        ((0.78, 0.82), (0.79, 0.83), "do not differ by more than chance"),
        ((0.70, 0.72), (0.79, 0.83), "distilled student is more accurate"),
        ((0.78, 0.82), (0.70, 0.72), "distilled student is less accurate"),
        ((0.780, 0.802), (0.800, 0.822), "distilled student is more accurate"),
    ],
)
def test_the_verdict_on_accuracy_follows_the_interval_of_the_difference(
    finetuned: tuple[float, float], distilled: tuple[float, float], verdict: str
) -> None:
    assert verdict in " ".join(_text(_summary(finetuned, distilled)).split())


@pytest.mark.parametrize(
    ("divergence", "verdict"),
    [
        ((0.2, 0.1), "nearer to the teacher: its divergence is 50% lower"),
        ((0.1, 0.12), "further from the teacher: its divergence is 20% higher"),
    ],
)
def test_the_verdict_on_divergence_says_which_way_it_went(
    divergence: tuple[float, float], verdict: str
) -> None:
    assert verdict in " ".join(_text(_summary(divergence=divergence)).split())


def test_the_summary_survives_json() -> None:
    summary = _summary()
    assert DemoSummary.model_validate_json(summary.model_dump_json()) == summary


def test_the_summary_takes_no_unknown_figure() -> None:
    with pytest.raises(ValidationError, match="surplus"):
        DemoSummary.model_validate({**_summary().model_dump(), "surplus": 1})
