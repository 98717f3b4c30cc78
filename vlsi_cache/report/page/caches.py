"""Two caches side by side to one HTML file."""

from __future__ import annotations

from typing import TypeVar

from vlsi_cache.report.compared import both_rows
from vlsi_cache.report.comparison import CacheComparison
from vlsi_cache.report.page.environment import render_template
from vlsi_cache.report.page.plots import length_plot, matrix_plots, shown_taps, tap_plots
from vlsi_cache.report.page.runs import difference_rows
from vlsi_cache.report.words import lacking_text

__all__ = ["render_caches"]

T = TypeVar("T")


def render_caches(compared: CacheComparison) -> str:
    """Return the page of two caches as HTML of less than 5 MB.

    Plots of one figure have the same scale, and stand side by side.
    """
    first, second = shown_taps(compared.first), shown_taps(compared.second)
    caches = (("first", first, second), ("second", second, first))
    rows, num_more = difference_rows(compared.differences)
    return render_template(
        "caches.html",
        title="Two caches",
        lacking=[(name, lacking_text(own)) for name, own, _ in caches if lacking_text(own)],
        settings=both_rows(compared),
        differences=rows,
        num_more_differences=num_more,
        pairs=_in_turn(
            [tap_plots(own, label=f", {name}", beside=other) for name, own, other in caches]
        ),
        matrices=_in_turn([matrix_plots(own, label=f", {name}") for name, own, _ in caches]),
        lengths=[
            (name, length_plot(own.lengths), own.lengths)
            for name, own, _ in caches
            if own.lengths is not None
        ],
        is_sampled=any(own.num_samples_read is not None for _, own, _ in caches),
    )


def _in_turn(both: list[list[T]]) -> list[T]:
    """Return the first's and the second's plots of each figure, one after the other."""
    first, second = both
    number = max(len(first), len(second))
    return [
        plots[index] for index in range(number) for plots in (first, second) if index < len(plots)
    ]
