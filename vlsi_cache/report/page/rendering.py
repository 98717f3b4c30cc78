"""A summary and samples of a cache to one HTML file, by a template that escapes all text."""

from __future__ import annotations

from typing import Final

from vlsi_cache.errors import printable
from vlsi_cache.jsonmodels import ReportModel
from vlsi_cache.report.page.environment import MAX_PAGE_BYTES, render_template
from vlsi_cache.report.page.grids import Limits, make_grid
from vlsi_cache.report.page.plots import (
    array_rows,
    length_plot,
    matrix_plots,
    shown_taps,
    tap_plots,
)
from vlsi_cache.report.sample import SampleView
from vlsi_cache.report.words import (
    MOST_OF_NAME,
    lacking_text,
    setting_rows,
    tap_name,
    without_figures,
)
from vlsi_cache.store.cache.figures.summary import CacheSummary

__all__ = ["MAX_PAGE_SAMPLES", "CachePage", "render_page"]

MAX_PAGE_SAMPLES: Final = 50
"""Most samples of a page."""

_CELLS: Final = 8_000
_CHARACTERS: Final = 200_000
_PICTURES: Final = 24
"""What all samples of a page share, if it does not become too large."""


class CachePage(ReportModel):
    """What a page shows: the same values that ``--json`` prints."""

    summary: CacheSummary
    """Statistics of the cache."""
    samples: tuple[SampleView, ...] = ()
    """Samples in words, at most 50."""
    chosen: bool = False
    """Whether the user chose the samples."""


def render_page(page: CachePage) -> str:
    """Return a page as HTML of less than 5 MB, which needs no other file and no network.

    Long texts and long samples are cut, and the page says where.

    Raises:
        ValueError: there are more than 50 samples.
    """
    if len(page.samples) > MAX_PAGE_SAMPLES:
        raise ValueError(f"{len(page.samples)} samples; a page has {MAX_PAGE_SAMPLES} at most")
    share = 1
    while True:
        text = _render(page, share)
        if len(text.encode()) < MAX_PAGE_BYTES or share > _CHARACTERS:
            return text
        share *= 2


def _render(page: CachePage, divisor: int) -> str:
    """Render a page whose samples take a part of what they could."""
    summary, count = page.summary, max(len(page.samples), 1) * divisor
    limits = Limits(_CELLS // count, _CHARACTERS // count, _PICTURES // count)
    drawn = shown_taps(summary)
    numbers = {view.key: number for number, view in enumerate(page.samples, 1)}
    return render_template(
        "page.html",
        title=f"Cache of {printable(summary.teacher.name, MOST_OF_NAME)}",
        lacking=lacking_text(summary),
        without_figures=without_figures(summary),
        settings=setting_rows(summary),
        failures=[
            (printable(name, MOST_OF_NAME), printable(reason))
            for name, reason in list(summary.failures.items())[:20]
        ],
        num_failures=len(summary.failures),
        summary=summary,
        plots=tap_plots(drawn),
        matrices=matrix_plots(drawn),
        arrays=array_rows(summary),
        lengths=summary.lengths,
        histogram=None if summary.lengths is None else length_plot(summary.lengths),
        certain=[
            ("Most certain", summary.most_certain),
            ("Least certain", summary.least_certain),
        ],
        shown=numbers,
        num_drawn=len(drawn.taps),
        grids=[make_grid(view, limits) for view in page.samples],
        chosen=page.chosen,
        tap_name=tap_name,
        name_of=lambda name: printable(name, MOST_OF_NAME),
    )
