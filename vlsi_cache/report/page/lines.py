"""Plots over the steps of a stage: lines of metrics, and who was matched with whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from vlsi_cache.report.page.geometry import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    height_scale,
    round_ticks,
    sparse_names,
)
from vlsi_cache.report.page.shapes import HeatMap, Line, LinePlot, Table
from vlsi_cache.report.run.summary import Matching, Metric, MetricPoint
from vlsi_cache.report.run.words import metric_text, tick_text

__all__ = ["Range", "Series", "heat_map", "line_plot", "range_of"]

_DOTS: Final = 60
"""Most points of a plot that are marked each."""
_LEGEND: Final = 8
"""Most lines that are named."""
_FROM_ZERO: Final = ("_bytes", "_share", "_per_second", "_per_step")
"""Ends of names of amounts, whose plots begin at 0."""


@dataclass(frozen=True, slots=True)
class Series:
    """A metric as a line."""

    name: str
    """What the legend calls it."""
    metric: Metric
    """Its points."""
    depth: float = 1.0
    """Place among the lines of a family, from 0 to 1. It chooses the colour."""
    is_dashed: bool = False
    """Whether it is the second of two runs."""


@dataclass(frozen=True, slots=True)
class Range:
    """Steps and values that a plot covers. Plots side by side cover the same."""

    first: int
    """First step."""
    last: int
    """Last step."""
    low: float
    """Least value."""
    high: float
    """Greatest value."""


def range_of(lines: Sequence[Series]) -> Range:
    """Return the steps and values that some lines cover."""
    points = [point for line in lines for point in line.metric.points]
    low, high = min(point.low for point in points), max(point.high for point in points)
    if lines[0].metric.name.endswith(_FROM_ZERO):
        low, high = min(low, 0.0), max(high, 0.0)
    steps = [point.step for point in points]
    return Range(min(steps), max(steps), low, high)


def line_plot(
    title: str, note: str, lines: Sequence[Series], covered: Range, most_points: int, most_rows: int
) -> LinePlot:
    """Return a plot of at least one series.

    Args:
        title: what is shown.
        note: what its lines are.
        lines: the series, all in the unit of the first.
        covered: steps and values.
        most_points: most points of a line.
        most_rows: most rows of the table.
    """
    unit = lines[0].metric.name
    ticks = round_ticks(covered.low, covered.high, whole=False)
    height = height_scale(ticks[0], ticks[-1])
    place = _place(covered)
    named = set(range(0, len(lines), -(-len(lines) // _LEGEND))) | {len(lines) - 1}
    cut = [_cut(line.metric.points, most_points) for line in lines]
    has_dots = sum(map(len, cut)) <= _DOTS
    return LinePlot(
        title=title,
        note=note,
        ticks=tuple((height(tick), tick_text(unit, tick)) for tick in ticks),
        steps=_step_labels(covered, place),
        lines=tuple(
            _line(line, points, place, height, has_dots=has_dots, in_legend=index in named)
            for index, (line, points) in enumerate(zip(lines, cut, strict=True))
        ),
        table=_table(lines, most_rows),
    )


def heat_map(matching: Matching, row: int, title: str) -> HeatMap:
    """Return the shares of the teacher taps over the steps, for one student tap.

    Args:
        matching: the run's matchings.
        row: place of the student tap.
        title: whose shares they are.
    """
    taps, periods = matching.teacher_taps, matching.periods
    width = (WIDTH - LEFT - RIGHT) / len(periods)
    height = (HEIGHT - TOP - BOTTOM) / len(taps)
    cells = tuple(
        (LEFT + column * width, TOP + line * height, round(share * 100))
        for column, period in enumerate(periods)
        for line, share in enumerate(period.share[row])
        if round(share * 100)
    )
    names = sparse_names(list(map(str, taps)))
    labelled = sorted({0, len(periods) // 2, len(periods) - 1})
    return HeatMap(
        title=title,
        width=width,
        height=height,
        cells=cells,
        names=tuple(
            (TOP + (index + 0.5) * height, name) for index, name in enumerate(names) if name
        ),
        steps=tuple(
            (LEFT + (index + 0.5) * width, f"{periods[index].last_step:,}") for index in labelled
        ),
        table=_likeliest(matching, row),
    )


def _likeliest(matching: Matching, row: int) -> Table:
    """Return the likeliest teacher tap of one student tap, over the steps."""
    rows = []
    for period in matching.periods:
        shares = period.share[row]
        best = max(range(len(shares)), key=shares.__getitem__)
        rows.append(
            (
                _steps_text(period.first_step, period.last_step),
                str(matching.teacher_taps[best]),
                f"{shares[best]:.0%}",
                f"{period.matched_divergence[row]:.3f}",
            )
        )
    return Table(("steps", "likeliest teacher tap", "its share", "divergence"), tuple(rows))


def _line(
    line: Series,
    points: Sequence[MetricPoint],
    place: Callable[[float], float],
    height: Callable[[float], float],
    *,
    has_dots: bool,
    in_legend: bool,
) -> Line:
    middle = [f"{place(point.step):.1f},{height(point.mean):.1f}" for point in points]
    upper = [f"{place(point.step):.1f},{height(point.high):.1f}" for point in points]
    lower = [f"{place(point.step):.1f},{height(point.low):.1f}" for point in points]
    spread = any(point.low < point.high for point in points)
    return Line(
        name=line.name,
        color=f"--d:{round(line.depth * 100)}%",
        is_dashed=line.is_dashed,
        points=" ".join(middle),
        band=" ".join([*upper, *reversed(lower)]) if spread else "",
        dots=tuple(
            (
                place(point.step),
                height(point.mean),
                f"{line.name}, step {point.step:,}: {metric_text(line.metric.name, point.mean)}",
            )
            for point in points
            if has_dots
        ),
        in_legend=in_legend,
    )


def _place(covered: Range) -> Callable[[float], float]:
    span = (covered.last - covered.first) or 1
    # a single step stands in the middle
    shift = 0.5 if covered.last == covered.first else 0.0
    width = WIDTH - LEFT - RIGHT - 8
    return lambda step: LEFT + 4 + width * ((step - covered.first) / span + shift)


def _step_labels(covered: Range, place: Callable[[float], float]) -> tuple[tuple[float, str], ...]:
    steps = sorted({covered.first, (covered.first + covered.last) // 2, covered.last})
    return tuple((place(step), f"{step:,}") for step in steps)


def _cut(points: Sequence[MetricPoint], most: int) -> list[MetricPoint]:
    """Choose evenly among points, the last one among them."""
    every = -(-len(points) // most)
    return [point for index, point in enumerate(points) if (len(points) - 1 - index) % every == 0]


def _table(lines: Sequence[Series], most: int) -> Table:
    values = [
        {point.step: point.mean for point in _cut(line.metric.points, most)} for line in lines
    ]
    steps = sorted({step for line in values for step in line})
    unit = lines[0].metric.name
    return Table(
        ("step", *(line.name for line in lines)),
        tuple(
            (
                f"{step:,}",
                *(metric_text(unit, line[step]) if step in line else "–" for line in values),
            )
            for step in steps
        ),
    )


def _steps_text(first: int, last: int) -> str:
    return f"{first:,}" if first == last else f"{first:,}–{last:,}"
