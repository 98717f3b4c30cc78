"""Plots of a page: the geometry of each, which its template draws, and its figures as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from vlsi_cache.report.page.geometry import (
    LEFT,
    RIGHT,
    WIDTH,
    height_scale,
    round_ticks,
    sparse_names,
)
from vlsi_cache.report.page.shapes import Bar, Box, Cell, Histogram, Matrix, Plot, Table
from vlsi_cache.report.words import bytes_text, tap_name
from vlsi_cache.store.cache.figures.summary import CacheSummary, Lengths, Quantiles, TapSummary

__all__ = ["array_rows", "length_plot", "matrix_plots", "shown_taps", "tap_plots"]

_FiguresOf = Callable[[TapSummary], tuple[Quantiles | None, float, float]]
_TapRow = tuple[str, float, float, tuple[float, ...]]

_MOST_VALUES: Final = 10
"""Taps up to which a matrix has room for its values."""
_MOST_TAPS: Final = 100
"""Most taps of a page."""
_AGREEMENT_NOTE: Final = "Share of tokens at which both taps hold the same token most likely."
_DISTANCE_NOTE: Final = (
    "Total variation between the records of a token: 0 % if they are the same, 100 % if they have "
    "no token in common. On average it is no less than that of the whole distributions."
)
_QUANTILES: Final = ("5 %", "25 %", "50 %", "75 %", "95 %")


def tap_plots(
    summary: CacheSummary, *, label: str = "", beside: CacheSummary | None = None
) -> list[Plot]:
    """Return the plots with a box per tap. A summary without quantiles has none.

    Args:
        summary: the cache.
        label: what its plots' titles end with.
        beside: a cache whose plots stand beside, and have the same scale.
    """
    if not summary.taps or summary.taps[0].entropy_quantiles is None:
        return []
    others = [] if beside is None else [tap for tap in beside.taps if tap.entropy_quantiles]
    return [
        _tap_plot(summary.taps, others, f"{title}{label}", note, figures_of)
        for title, note, figures_of in _FIGURES
    ]


def shown_taps(summary: CacheSummary) -> CacheSummary:
    """Return a summary of at most 100 taps, evenly chosen, the output among them."""
    every = -(-len(summary.taps) // _MOST_TAPS)
    if every <= 1:
        return summary
    rows = range(len(summary.taps) - 1, -1, -every)[::-1]
    taps = [summary.taps[row] for row in rows]
    kept = [
        tap.model_copy(
            update={
                name: tuple(getattr(tap, name)[row] for row in rows if getattr(tap, name))
                for name in ("agreement_with_taps", "distance_to_taps", "distance_errors")
            }
        )
        for tap in taps
    ]
    return summary.model_copy(update={"taps": tuple(kept)})


def matrix_plots(summary: CacheSummary, *, label: str = "") -> list[Matrix]:
    """Return agreement and distance of all pairs of taps, as far as the summary has them.

    Args:
        summary: the cache.
        label: what the titles end with.
    """
    taps = summary.taps
    found = []
    if taps and taps[0].agreement_with_taps:
        title, note = f"Agreement of the taps with one another{label}", _AGREEMENT_NOTE
        shares = [tap.agreement_with_taps for tap in taps]
        found.append(_matrix(title, note, taps, shares, [() for _ in taps]))
    if taps and taps[0].distance_to_taps:
        title, note = f"Distance of the taps from one another{label}", _DISTANCE_NOTE
        if summary.num_tokens_compared is not None:
            note += f" Over {summary.num_tokens_compared:,} tokens chosen at random."
        shares = [tap.distance_to_taps for tap in taps]
        found.append(_matrix(title, note, taps, shares, [tap.distance_errors for tap in taps]))
    return found


def _matrix(
    title: str,
    note: str,
    taps: Sequence[TapSummary],
    shares: Sequence[tuple[float, ...]],
    errors: Sequence[tuple[float, ...]],
) -> Matrix:
    """Return a matrix of shares, with their standard errors where there are any."""
    names = [tap_name(tap.tap) for tap in taps]
    side = (WIDTH - LEFT - RIGHT) / len(names)
    cells, rows = [], []
    for row, values in enumerate(shares):
        texts = [f"{share:.1%}" if errors[row] else f"{share:.0%}" for share in values]
        if errors[row]:
            pairs = zip(texts, errors[row], strict=True)
            texts = [f"{text} ± {error:.1%}" for text, error in pairs]
        rows.append((names[row], *texts))
        for column, share in enumerate(values):
            words = f"{names[row]} and {names[column]}: {texts[column]}"
            cells.append(Cell(LEFT + column * side, row * side, round(share * 100), words))
    return Matrix(
        title=title,
        note=note,
        side=side,
        cells=tuple(cells),
        names=tuple(
            ((index + 0.5) * side, name) for index, name in enumerate(sparse_names(names)) if name
        ),
        has_values=len(names) <= _MOST_VALUES,
        table=Table(("tap", *names), tuple(rows)),
    )


def length_plot(lengths: Lengths) -> Histogram:
    """Return the histogram of the samples' lengths."""
    most = max(bin_.num_samples for bin_ in lengths.bins)
    ticks = round_ticks(0, most, whole=True)
    height, width = height_scale(0, ticks[-1]), (WIDTH - LEFT - RIGHT) / len(lengths.bins)
    names = [
        f"{bin_.first:,}" if bin_.first == bin_.last else f"{bin_.first:,}–{bin_.last:,}"
        for bin_ in lengths.bins
    ]
    labels = sparse_names([f"{bin_.first:,}" for bin_ in lengths.bins])
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


_FIGURES: Final[tuple[tuple[str, str, _FiguresOf], ...]] = (
    (
        "Entropy, in nats",
        "Quantiles over response tokens. Little entropy: the tap is sure of one token.",
        lambda tap: (tap.entropy_quantiles, tap.entropy_nats, _error(tap, "entropy_nats")),
    ),
    (
        "Log-probability of the label, in nats",
        "Quantiles over response tokens. The label is the token that the data holds.",
        lambda tap: (
            tap.label_log_prob_quantiles,
            tap.label_log_prob_nats,
            _error(tap, "label_log_prob_nats"),
        ),
    ),
    (
        "Agreement with the output",
        "Share of tokens whose likeliest token is the output's. Quantiles over samples.",
        lambda tap: (
            tap.agreement_quantiles,
            tap.agreement_with_final,
            _error(tap, "agreement_with_final"),
        ),
    ),
)


def _tap_plot(
    taps: Sequence[TapSummary],
    others: Sequence[TapSummary],
    title: str,
    note: str,
    figures_of: _FiguresOf,
) -> Plot:
    """Return a plot of the quantiles, the mean and two standard errors of each tap."""
    rows, beside = (list(_tap_rows(shown, figures_of)) for shown in (taps, others))
    values = [value for _, mean, _, edges in [*rows, *beside] for value in (mean, *edges)]
    is_share = min(values) >= 0 and max(values) <= 1 and title.startswith("Agreement")
    ticks = round_ticks(min(0.0, *values), max(0.0, *values), whole=False)
    height, step = height_scale(ticks[0], ticks[-1]), (WIDTH - LEFT - RIGHT) / len(rows)
    shown = "{:.0%}" if is_share else "{:.2f}"
    labels = sparse_names([name for name, *_ in rows])
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


def _tap_rows(taps: Sequence[TapSummary], figures_of: _FiguresOf) -> Iterator[_TapRow]:
    for tap in taps:
        quantiles, mean, error = figures_of(tap)
        if quantiles is not None:
            yield tap_name(tap.tap), mean, error, tuple(quantiles.model_dump().values())


def _tap_table(rows: Sequence[_TapRow], shown: str) -> Table:
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
