"""The goals on one H100, and whether a result meets them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness import PrintedTable

__all__ = ["judged", "table"]

OBJECTIVE_TIME = 1.4
OBJECTIVE_BYTES = 6e9
DUMP = 1.05
OUTPUT_ONLY = 1.10

Goal = dict[str, Any]


def judged(result: dict[str, Any]) -> list[Goal]:
    """Return every goal with its limit, what was found, and whether it is met.

    A goal without a figure, such as the memory of a CPU, is not met and not missed: null.
    """
    return [
        {
            "goal": name,
            "limit": limit,
            "found": found,
            "met": None if found is None else found <= limit,
        }
        for name, limit, found in _found(result)
    ]


def table(result: dict[str, Any]) -> PrintedTable:
    """Build the table of goals."""
    words = {True: "met", False: "missed", None: "not measured"}
    return PrintedTable(
        f"goals, {result['size']} sizes",
        ("goal", "limit", "found", ""),
        [
            (one["goal"], f"{one['limit']:.3g}", _spelt(one["found"]), words[one["met"]])
            for one in result["goals"]
        ],
    )


def _spelt(found: float | None) -> str:
    return "" if found is None else f"{found:.3g}"


def _found(result: dict[str, Any]) -> Iterator[tuple[str, float, float | None]]:
    for row in result.get("objective", ()):
        candidates = "1 candidate" if row["candidates"] == 1 else f"{row['candidates']} candidates"
        name = f"objective, {row['vocab']:,} tokens, {candidates}"
        yield f"{name}: time over its products", OBJECTIVE_TIME, row["time_over_floor"]
        yield f"{name}: peak bytes", OBJECTIVE_BYTES, row["peak_bytes"]
    if "dump" in result:
        over = result["dump"]["over_verbalized"]
        yield "dump: time over the forward with verbalizers", DUMP, over
    for row in result.get("student_step", ()):
        if "output only" in row["name"]:
            found = row["over_cross_entropy"]
            yield f"step of {row['name']}: time over cross-entropy", OUTPUT_ONLY, found
