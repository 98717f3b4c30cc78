"""A run, or two runs, as terminal tables."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vlsi_cache.errors import printable
from vlsi_cache.report.compared import differences_table, name_grid, plain_table
from vlsi_cache.report.comparison import RunComparison
from vlsi_cache.report.run.summary import Matching, MatchingPeriod, Metric, RunSummary, StageSummary
from vlsi_cache.report.run.words import cache_text, pace_rows, state_text, value_of

__all__ = ["comparison_table", "run_table"]


def run_table(run: RunSummary) -> RenderableType:
    """Each stage with its pace, its metrics and its matchings."""
    head = name_grid([("run", printable(run.path)), *_cache(run)])
    if not run.stages:
        return Group(head, Text("No stage was begun here."))
    return Group(head, *(part for stage in run.stages for part in _stage(stage)))


def comparison_table(compared: RunComparison) -> RenderableType:
    """What differs, and the last values of both runs side by side."""
    head = name_grid(
        [("first", printable(compared.first.path)), ("second", printable(compared.second.path))]
    )
    second = {stage.name: stage for stage in compared.second.stages}
    parts: list[RenderableType] = [head, Text(), differences_table(compared.differences)]
    for stage in compared.first.stages:
        if stage.name in second:
            parts += [Text(), _both(stage, second[stage.name])]
    return Group(*parts)


def _stage(stage: StageSummary) -> Iterator[RenderableType]:
    yield Text()
    yield Text(f"{printable(stage.name)}: {state_text(stage)}", style="bold")
    if stage.pace is not None:
        yield name_grid(pace_rows(stage))
    for note in stage.notes:
        yield Text(printable(note), style="yellow")
    for heading, metrics in (("metric", stage.metrics), ("held out", stage.held_out)):
        if metrics:
            yield _metrics(heading, metrics)
    if stage.matching is not None:
        yield _matching(stage.matching)


def _metrics(heading: str, metrics: tuple[Metric, ...]) -> Table:
    table = plain_table()
    table.add_column(heading, overflow="fold")
    for name in ("first", "last", "least", "greatest"):
        table.add_column(name, justify="right")
    for metric in metrics:
        values = metric.first, metric.last, metric.least, metric.greatest
        table.add_row(Text(printable(metric.name)), *(value_of(metric, value) for value in values))
    return table


def _matching(matching: Matching) -> Table:
    table = plain_table()
    table.add_column("student tap", justify="right")
    first, last = matching.periods[0], matching.periods[-1]
    for name in (f"matched at {_steps(first)}", f"matched at {_steps(last)}", "divergence"):
        table.add_column(name)
    for row, tap in enumerate(matching.student_taps):
        before, after = first.matched_divergence[row], last.matched_divergence[row]
        table.add_row(
            str(tap),
            _likeliest(matching, first.share[row]),
            _likeliest(matching, last.share[row]),
            f"{before:.3f} → {after:.3f}",
        )
    return table


def _steps(period: MatchingPeriod) -> str:
    first, last = period.first_step, period.last_step
    return f"step {last:,}" if first == last else f"steps {first:,} to {last:,}"


def _likeliest(matching: Matching, shares: tuple[float, ...]) -> str:
    best = max(range(len(shares)), key=shares.__getitem__)
    return f"{matching.teacher_taps[best]} ({shares[best]:.0%})"


def _both(first: StageSummary, second: StageSummary) -> Table:
    table = plain_table(f"{printable(first.name)}: {state_text(first)} | {state_text(second)}")
    table.add_column("last value", overflow="fold")
    for name in ("first", "second", "difference"):
        table.add_column(name, justify="right")
    for name in ("metrics", "held_out"):
        others = {metric.name: metric for metric in getattr(second, name)}
        for metric in getattr(first, name):
            other = others.pop(metric.name, None)
            table.add_row(Text(printable(metric.name)), *_last_values(metric, other))
        for metric in others.values():
            table.add_row(Text(printable(metric.name)), "–", value_of(metric, metric.last), "")
    others = dict(pace_rows(second))
    for label, value in pace_rows(first):
        table.add_row(label, value, others.get(label, "–"), "")
    return table


def _last_values(metric: Metric, other: Metric | None) -> tuple[str, str, str]:
    own = value_of(metric, metric.last)
    if other is None:
        return own, "–", ""
    return own, value_of(other, other.last), f"{other.last - metric.last:+.4g}"


def _cache(run: RunSummary) -> list[tuple[str, str]]:
    return [] if run.cache is None else [("cache", cache_text(run.cache))]
