"""What a training logged: its pace, and its held-out figures over response tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Curve"]


@dataclass(frozen=True)
class Curve:
    """Figures of one run, on the way."""

    points: list[dict[str, Any]]
    """Step, response tokens and divergence at each measurement."""
    tokens: int
    """Response tokens that it learned from."""
    seconds_per_step: float | None
    """Mean time of a step, without the first logged ones. None where too few were logged."""

    @classmethod
    def read(cls, folder: Path) -> Curve:
        """Read the files of a stage. A run that did not start has no points."""
        total, seconds, steps = 0, 0.0, 0
        tokens = {0: 0}
        for line in _lines(folder / "metrics.jsonl"):
            if "loss" not in line.get("metrics", {}):
                continue
            total += line.get("num_tokens", 0)
            tokens[line["step"]] = total
            if line["step"] > 1:  # the first step warms up
                seconds += line.get("seconds", 0.0)
                steps += line.get("num_steps", 0)
        per_step = total / max(max(tokens), 1)
        points = []
        for line in _lines(folder / "held-out.jsonl"):
            divergence = line.get("metrics", line).get("held_out_divergence_nats")
            step = line["step"]
            known = tokens.get(step, round(step * per_step))
            points.append({"step": step, "tokens": known, "divergence_nats": divergence})
        return cls(points, total, seconds / steps if steps else None)


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:  # a run that was ended may leave half a line
            continue
    return found
