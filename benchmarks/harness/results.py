"""Results that are written once, and what several seeds say together."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["mean_and_interval", "shown", "written_once"]

_STUDENT_T_95 = (
    *(math.nan, math.nan, 12.706, 4.303, 3.182, 2.776),
    *(2.571, 2.447, 2.365, 2.306, 2.262),
)
"""Two-sided quantiles, by the number of values."""


def written_once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Read a result, which is made and written down first if it is missing."""
    if not path.exists():
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def mean_and_interval(values: Sequence[float]) -> dict[str, float | None]:
    """Return the mean and half the 95 % interval. One value has no interval."""
    interval = None
    if len(values) > 1:
        t = _STUDENT_T_95[min(len(values), len(_STUDENT_T_95) - 1)]
        interval = t * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": statistics.fmean(values) if values else None, "interval": interval}


def shown(figure: dict[str, float | None], sign: str = "") -> str:
    """Write a mean and its interval, with nothing where there is none."""
    if figure["mean"] is None:
        return ""
    interval = "" if figure["interval"] is None else f" ± {figure['interval']:.3f}"
    return f"{figure['mean']:{sign}.3f}{interval}"
