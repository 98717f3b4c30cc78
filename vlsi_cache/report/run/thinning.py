"""Long series to a few points, always the same ones, with what lies between."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

from vlsi_cache.report.run.summary import Metric, MetricPoint

__all__ = ["MOST_POINTS", "metric_of", "spans"]

MOST_POINTS: Final = 120
"""Most points of a series."""


def metric_of(name: str, steps: Sequence[int], values: Sequence[float]) -> Metric:
    """Return a metric of at least one line.

    A point is the mean of neighbouring lines, with their least and greatest value: so a single
    peak stays visible in a series of any length.

    Args:
        name: name of the metric.
        steps: step of each line.
        values: value of each line.
    """
    points = []
    for span in spans(len(steps), MOST_POINTS):
        inside = values[span]
        points.append(
            MetricPoint(
                step=steps[span][-1],
                mean=sum(inside) / len(inside),
                low=min(inside),
                high=max(inside),
            )
        )
    return Metric(
        name=name,
        num_lines=len(steps),
        first=values[0],
        last=values[-1],
        least=min(values),
        greatest=max(values),
        points=tuple(points),
    )


def spans(count: int, most: int) -> list[slice]:
    """Cut a range into at most so many neighbouring parts of nearly equal length."""
    number = min(count, most)
    edges = [index * count // number for index in range(number + 1)] if number else [0]
    return [slice(first, stop) for first, stop in itertools.pairwise(edges)]
