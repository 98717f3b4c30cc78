"""95 % intervals of proportions, and of the difference of two."""

from __future__ import annotations

import math

__all__ = ["Interval", "difference_interval", "wilson_interval"]

Interval = tuple[float, float]

_NORMAL_95 = 1.959964


def wilson_interval(num_right: int, num_questions: int) -> Interval:
    """Return the interval of a proportion (Wilson, 1927)."""
    proportion = num_right / num_questions
    z = _NORMAL_95
    centre = proportion + z * z / (2 * num_questions)
    spread = z * math.sqrt(
        proportion * (1 - proportion) / num_questions + z * z / (4 * num_questions * num_questions)
    )
    scale = 1 + z * z / num_questions
    return (centre - spread) / scale, (centre + spread) / scale


def difference_interval(
    proportion: float, interval: Interval, other: float, other_interval: Interval
) -> Interval:
    """Return the interval of a proportion less another, from their Wilson intervals.

    This is method 10 of Newcombe (1998). Two intervals may overlap although the proportions differ
    by more than chance. The method assumes independent questions. It is rather wide where both
    proportions are of the same questions, which are equally hard for both.
    """
    difference = proportion - other
    below = math.hypot(proportion - interval[0], other_interval[1] - other)
    above = math.hypot(interval[1] - proportion, other - other_interval[0])
    return difference - below, difference + above
