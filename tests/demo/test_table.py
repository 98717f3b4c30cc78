"""The demo's result, for people and for programs."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from rich.console import Console

from vlsi_cache.demo.table import (
    DemoAccuracy,
    DemoDivergence,
    DemoIntervals,
    DemoPair,
    DemoPaths,
    DemoSummary,
    demo_table,
)
from vlsi_cache.evaluation.intervals import difference_interval, wilson_interval


def _pair(seed: int, finetuned: int, distilled: int) -> DemoPair:
    """Build a pair of students with so many right answers in a thousand."""
    shares = finetuned / 1000, distilled / 1000
    intervals = wilson_interval(finetuned, 1000), wilson_interval(distilled, 1000)
    return DemoPair(
        seed=seed,
        finetuned=shares[0],
        finetuned_interval=intervals[0],
        finetuned_nats=0.2,
        distilled=shares[1],
        distilled_interval=intervals[1],
        distilled_nats=0.1,
        gain=shares[1] - shares[0],
        gain_interval=difference_interval(shares[1], intervals[1], shares[0], intervals[0]),
    )


def _summary(*pairs: DemoPair) -> DemoSummary:
    """Build a run's summary with the given pairs of students."""
    first = pairs[0]
    return DemoSummary(
        accuracy=DemoAccuracy(
            floor=0.6701,
            teacher=0.9123,
            finetuned=first.finetuned,
            distilled=first.distilled,
        ),
        accuracy_interval=DemoIntervals(
            teacher=(0.9041, 0.9199),
            finetuned=first.finetuned_interval,
            distilled=first.distilled_interval,
        ),
        gain=first.gain,
        gain_interval=first.gain_interval,
        divergence_nats=DemoDivergence(finetuned=0.2, distilled=0.1),
        pairs=list(pairs),
        num_questions=4836,
        student_steps=180,
        bytes_per_token_tap=23.45,
        paths=DemoPaths(
            cache="out/cache", student="out/student", statistics="s", page="p", recipe="r"
        ),
        seconds=612.4,
        cpu_seconds=700.0,
    )


def _text(summary: DemoSummary) -> str:
    console = Console(width=80, force_terminal=False)
    with console.capture() as capture:
        console.print(demo_table(summary))
    return capture.get()


def test_the_table_shows_every_figure_within_eighty_columns() -> None:
    text = _text(_summary(_pair(0, 800, 860)))
    assert max(len(line) for line in text.splitlines()) <= 80
    for figure in ("67.0%", "91.2%", "90.4% – 92.0%", "80.0%", "86.0%", "0.200", "0.100"):
        assert figure in text
    assert "answers, 40% wrong" in text
    for fact in ("4836 questions", "180 steps", "23.4", "612 s", "out/cache", "out/student"):
        assert fact in " ".join(text.split())
    assert "pairs of students" not in text


@pytest.mark.parametrize(
    ("finetuned", "distilled", "verdict"),
    [
        (800, 860, "is 6.0 points more accurate than without it (95 % interval +2.7 to +9.3)"),
        (800, 810, "1.0 points more accurate than without it, which may be chance (95 % interval"),
        (810, 800, "1.0 points less accurate than without it, which may be chance (95 % interval"),
        (860, 800, "is 6.0 points less accurate than without it (95 % interval -9.3 to -2.7)"),
    ],
)
def test_the_verdict_is_one_sentence_with_the_gain_and_its_interval(
    finetuned: int, distilled: int, verdict: str
) -> None:
    assert verdict in " ".join(_text(_summary(_pair(0, finetuned, distilled))).split())


def test_the_last_line_is_the_next_command() -> None:
    last = _text(_summary(_pair(0, 800, 860))).splitlines()[-1]
    assert "vlsi-cache check --teacher … --student … --data …" in last


def test_several_pairs_have_a_table_of_their_own() -> None:
    text = _text(_summary(_pair(0, 800, 860), _pair(1, 790, 801)))
    assert max(len(line) for line in text.splitlines()) <= 80
    rows = [line.replace("│", " ").split() for line in text.splitlines()]
    assert ["1", "79.0%", "80.1%", "+1.1", "-2.4", "–", "+4.6"] in rows
    assert (
        "The teacher's record adds +1.1 to +6.0 points, +3.5 on average. It is more than chance "
        "in 1 of 2 pairs."
    ) in " ".join(text.split())


def test_the_page_of_the_demo_has_what_the_run_gave() -> None:
    root = Path(__file__).parents[2]
    result = (root / "benchmarks" / "results" / "demo.json").read_text(encoding="utf-8")
    summary = DemoSummary.model_validate_json(result)
    page = (root / "docs" / "demo.md").read_text(encoding="utf-8")
    shown = "\n".join(line.rstrip() for line in _text(summary).splitlines())
    assert f"$ vlsi-cache demo --pairs {len(summary.pairs)}\n{shown}" in page
    assert len(summary.pairs) == 5
    assert all(pair.gain_interval[0] > 0 for pair in summary.pairs)


def test_the_summary_survives_json() -> None:
    summary = _summary(_pair(0, 800, 860))
    assert DemoSummary.model_validate_json(summary.model_dump_json()) == summary


def test_the_summary_takes_no_unknown_figure() -> None:
    with pytest.raises(ValidationError, match="surplus"):
        DemoSummary.model_validate({**_summary(_pair(0, 800, 860)).model_dump(), "surplus": 1})
