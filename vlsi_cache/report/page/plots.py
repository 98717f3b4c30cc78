"""Plots of a page: the geometry of each, which its template draws, and its figures as a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from vlsi_cache.report.page.shapes import Bar, Box, Cell, Histogram, Matrix, Plot, Table
from vlsi_cache.report.words import bytes_text, tap_name
from vlsi_cache.store.cache.summary import CacheSummary, Lengths, Quantiles, TapSummary

__all__ = ["array_rows", "length_plot", "matrix_plot", "tap_plots"]

WIDTH: Final = 360
HEIGHT: Final = 220
LEFT, RIGHT, TOP, BOTTOM = 46, 6, 10, 34
_ROOM: Final = 10
"""Taps up to which each has room for its name."""
_MOST_LABELS: Final = 7
"""Names of more taps than that."""
_MOST_VALUES: Final = 10
"""Taps up to which a matrix has room for its values."""
_QUANTILES: Final = ("5 %", "25 %", "50 %", "75 %", "95 %")


def tap_plots(summary: CacheSummary) -> list[Plot]:
    """Return the plots with a box per tap. A summary without quantiles has none."""
    if not summary.taps or summary.taps[0].entropy_quantiles is None:
        return []
    return [
        _tap_plot(
            summary.taps,
            "Entropy, in nats",
            "Quantiles over response tokens. Little entropy: the tap is sure of one token.",
            lambda tap: (tap.entropy_quantiles, tap.entropy_nats, _error(tap, "entropy_nats")),
        ),
        _tap_plot(
            summary.taps,
            "Log-probability of the label, in nats",
            "Quantiles over response tokens. The label is the token that the data holds.",
            lambda tap: (
                tap.label_log_prob_quantiles,
                tap.label_log_prob_nats,
                _error(tap, "label_log_prob_nats"),
            ),
        ),
        _tap_plot(
            summary.taps,
            "Agreement with the output",
            "Share of tokens whose likeliest token is the output's. Quantiles over samples.",
            lambda tap: (
                tap.agreement_quantiles,
                tap.agreement_with_final,
                _error(tap, "agreement_with_final"),
            ),
        ),
    ]


def matrix_plot(summary: CacheSummary) -> Matrix | None:
    """Return the agreement of all pairs of taps, or None if the summary lacks it."""
    names = [tap_name(tap.tap) for tap in summary.taps]
    if not names or not summary.taps[0].agreement_with_taps:
        return None
    side = (WIDTH - LEFT - RIGHT) / len(names)
    cells, rows = [], []
    for row, tap in enumerate(summary.taps):
        percents = [round(share * 100) for share in tap.agreement_with_taps]
        rows.append((names[row], *(f"{percent} %" for percent in percents)))
        for column, percent in enumerate(percents):
            title = f"{names[row]} and {names[column]}: {percent} %"
            cells.append(Cell(LEFT + column * side, row * side, percent, title))
    return Matrix(
        side=side,
        cells=tuple(cells),
        names=tuple(
            ((index + 0.5) * side, name) for index, name in enumerate(_sparse(names)) if name
        ),
        has_values=len(names) <= _MOST_VALUES,
        table=Table(("tap", *names), tuple(rows)),
    )


def length_plot(lengths: Lengths) -> Histogram:
    """Return the histogram of the samples' lengths."""
    most = max(bin_.num_samples for bin_ in lengths.bins)
    ticks = _ticks(0, most, whole=True)
    height, width = _height(0, ticks[-1]), (WIDTH - LEFT - RIGHT) / len(lengths.bins)
    names = [
        f"{bin_.first:,}" if bin_.first == bin_.last else f"{bin_.first:,}–{bin_.last:,}"
        for bin_ in lengths.bins
    ]
    labels = _sparse([f"{bin_.first:,}" for bin_ in lengths.bins])
    return Histogram(
        bars=tuple(
            Bar(
                x=LEFT + index * width,
                width=max(width - 1, 0.5),
                y=height(bin_.num_samples),
                height=height(0) - height(bin_.num_samples),
                label=labels[index],
                title=f"{names[index]} tokens: {bin_.num_samples:,} samples",
            )
            for index, bin_ in enumerate(lengths.bins)
        ),
        ticks=tuple((height(tick), f"{tick:,.0f}") for tick in ticks),
        table=Table(
            ("response tokens", "samples"),
            tuple(
                (name, f"{bin_.num_samples:,}")
                for name, bin_ in zip(names, lengths.bins, strict=True)
            ),
        ),
    )


def array_rows(summary: CacheSummary) -> list[tuple[str, str, str, float]]:
    """Return name, size, share and percent of each array, the largest first."""
    total = max(sum(summary.bytes_by_array.values()), 1)
    ordered = sorted(summary.bytes_by_array.items(), key=lambda item: (-item[1], item[0]))
    return [
        (name, bytes_text(count), f"{count / total:.1%}", round(100 * count / total, 1))
        for name, count in ordered
    ]


def _error(tap: TapSummary, name: str) -> float:
    return 0.0 if tap.standard_errors is None else 2 * float(getattr(tap.standard_errors, name))


def _tap_plot(
    taps: Sequence[TapSummary],
    title: str,
    note: str,
    figures_of: Callable[[TapSummary], tuple[Quantiles | None, float, float]],
) -> Plot:
    """Return a plot of the quantiles, the mean and two standard errors of each tap."""
    found = [(tap_name(tap.tap), *figures_of(tap)) for tap in taps]
    rows = [
        (name, mean, error, tuple(quantiles.model_dump().values()))
        for name, quantiles, mean, error in found
        if quantiles is not None
    ]
    values = [value for _, mean, _, edges in rows for value in (mean, *edges)]
    is_share = min(values) >= 0 and max(values) <= 1 and title.startswith("Agreement")
    ticks = _ticks(min(0.0, *values), max(0.0, *values), whole=False)
    height, step = _height(ticks[0], ticks[-1]), (WIDTH - LEFT - RIGHT) / len(rows)
    shown = "{:.0%}" if is_share else "{:.2f}"
    labels = _sparse([name for name, *_ in rows])
    return Plot(
        title=title,
        note=note,
        ticks=tuple((height(tick), f"{tick:.0%}" if is_share else f"{tick:g}") for tick in ticks),
        boxes=tuple(
            Box(
                x=LEFT + (index + 0.5) * step,
                half=min(step * 0.3, 12),
                edges=tuple(map(height, edges)),
                mean=height(mean),
                error=abs(height(0) - height(error)),
                label=labels[index],
                title=f"{name}: mean {shown.format(mean)}, median {shown.format(edges[2])}",
            )
            for index, (name, mean, error, edges) in enumerate(rows)
        ),
        table=_tap_table(rows, shown),
    )


def _tap_table(rows: Sequence[tuple[str, float, float, tuple[float, ...]]], shown: str) -> Table:
    """Return name, mean, two standard errors and quantiles of each tap as text."""
    return Table(
        ("tap", "mean", *_QUANTILES),
        tuple(
            (name, _mean_text(shown, mean, error), *map(shown.format, edges))
            for name, mean, error, edges in rows
        ),
    )


def _mean_text(shown: str, mean: float, error: float) -> str:
    return f"{shown.format(mean)} ± {shown.format(error / 2)}" if error else shown.format(mean)


def _height(low: float, high: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / span


def _ticks(low: float, high: float, *, whole: bool) -> list[float]:
    """Return round numbers that enclose the values, about five of them."""
    rough = (high - low) / 4 or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step + 0.0 for index in range(first, max(last, first + 1) + 1)]


def _sparse(names: Sequence[str]) -> list[str]:
    """Empty the names that have no room. The last one stays."""
    every = 1 if len(names) <= _ROOM else -(-len(names) // _MOST_LABELS)
    last = len(names) - 1
    return [name if (last - index) % every == 0 else "" for index, name in enumerate(names)]
