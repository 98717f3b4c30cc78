"""A run, or two runs side by side, to one HTML file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from vlsi_cache.errors import printable
from vlsi_cache.report.comparison import RunComparison, SettingDifference, value_text
from vlsi_cache.report.page.environment import MAX_PAGE_BYTES, render_template
from vlsi_cache.report.page.lines import Series, heat_map, line_plot, range_of
from vlsi_cache.report.page.shapes import HeatMap, LinePlot
from vlsi_cache.report.run.summary import Matching, Metric, MetricPoint, RunSummary, StageSummary
from vlsi_cache.report.run.words import cache_text, metric_title, pace_cells, state_text, tap_of
from vlsi_cache.report.settings import flat_settings

__all__ = ["difference_rows", "render_run", "render_runs"]

_MOST_MAPS: Final = 24
"""Most student taps whose matchings are drawn, of each run."""
_MOST_ROWS: Final = 24
_MOST_POINTS: Final = 120
_MOST_DIFFERENCES: Final = 200
_NAMES: Final = ("first", "second")
_LAST: Final = ("grad_norm", "learning_rate")
"""Metrics that come after the losses."""
_OF_MATCHED: Final = "matched_tap"


@dataclass(frozen=True, slots=True)
class _Room:
    """What the plots of a page may take."""

    points: int
    rows: int
    maps: int


@dataclass(frozen=True, slots=True)
class _ShownStage:
    """A stage as the page shows it. Two runs have one of a name together."""

    name: str
    states: tuple[str, ...]
    notes: tuple[str, ...]
    settings: tuple[tuple[str, list[tuple[str, str]]], ...]
    groups: tuple[tuple[str, tuple[LinePlot, ...]], ...]
    maps: tuple[HeatMap, ...]
    maps_note: str


def render_run(run: RunSummary) -> str:
    """Return a run's page as HTML of less than 5 MB, which needs no other file and no network."""
    return _fitting(f"Run {printable(run.path)}", [run], ())


def render_runs(compared: RunComparison) -> str:
    """Return the page of two runs, with what differs in their settings first."""
    return _fitting("Two runs", [compared.first, compared.second], compared.differences)


def difference_rows(
    differences: Sequence[SettingDifference],
) -> tuple[list[tuple[str, str, str]], int]:
    """Return path and both values of the first differences, and the number of the others."""
    rows = [
        (printable(item.path), value_text(item, first=True), value_text(item, first=False))
        for item in differences[:_MOST_DIFFERENCES]
    ]
    return rows, len(differences) - len(rows)


def _fitting(
    title: str, runs: Sequence[RunSummary], differences: Sequence[SettingDifference]
) -> str:
    """Render with ever less detail until the page is small enough."""
    share = 1
    while True:
        room = _Room(_MOST_POINTS // share or 2, _MOST_ROWS // share or 2, _MOST_MAPS // share)
        rows, num_more = difference_rows(differences)
        text = render_template(
            "run.html",
            title=title,
            runs=[
                (_name(runs, index), printable(run.path), run, _cache_text(run))
                for index, run in enumerate(runs)
            ],
            stage_rows=[row for index, run in enumerate(runs) for row in _rows(runs, index, run)],
            stages=[_shown(name, stages, room) for name, stages in _by_name(runs).items()],
            is_comparison=len(runs) > 1,
            differences=rows,
            num_more_differences=num_more,
        )
        if len(text.encode()) < MAX_PAGE_BYTES or share > _MOST_POINTS:
            return text
        share *= 2


def _name(runs: Sequence[RunSummary], index: int) -> str:
    return _NAMES[index] if len(runs) > 1 else "run"


def _cache_text(run: RunSummary) -> str:
    return "" if run.cache is None else cache_text(run.cache)


def _rows(
    runs: Sequence[RunSummary], index: int, run: RunSummary
) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """Yield run, stage, state and pace of each stage."""
    for stage in run.stages:
        label = _NAMES[index] if len(runs) > 1 else ""
        yield label, printable(stage.name), state_text(stage), pace_cells(stage)


def _by_name(runs: Sequence[RunSummary]) -> dict[str, list[StageSummary | None]]:
    """Return name → the stage in each run, or None where a run lacks it."""
    names = dict.fromkeys(stage.name for run in runs for stage in run.stages)
    found = [{stage.name: stage for stage in run.stages} for run in runs]
    return {name: [stages.get(name) for stages in found] for name in names}


def _shown(name: str, stages: Sequence[StageSummary | None], room: _Room) -> _ShownStage:
    labels = _NAMES if len(stages) > 1 else ("",)
    present = [
        (label, stage) for label, stage in zip(labels, stages, strict=True) if stage is not None
    ]
    maps, note = _maps(present, room)
    return _ShownStage(
        name=printable(name),
        states=tuple(
            f"{label}: {state_text(stage)}" if label else state_text(stage)
            for label, stage in present
        ),
        notes=tuple(printable(note) for _, stage in present for note in stage.notes),
        settings=tuple((label, flat_settings(stage.settings)) for label, stage in present),
        groups=tuple(_groups(present, room)),
        maps=maps,
        maps_note=note,
    )


def _groups(
    present: Sequence[tuple[str, StageSummary]], room: _Room
) -> Iterator[tuple[str, tuple[LinePlot, ...]]]:
    """Yield heading and plots of each kind of metric that there is."""
    kinds = (
        ("Losses", [(label, _with_matched(stage)) for label, stage in present]),
        ("On held-out data", [(label, stage.held_out) for label, stage in present]),
        ("Pace and memory", [(label, stage.pace_metrics) for label, stage in present]),
    )
    for heading, metrics in kinds:
        plots = tuple(_plots(metrics, room))
        if plots:
            yield heading, plots


def _with_matched(stage: StageSummary) -> tuple[Metric, ...]:
    """Return a stage's metrics, the losses first, and the journal's where it logged none."""
    matching = stage.matching
    if matching is not None and not stage.metrics:
        return tuple(
            _matched_metric(matching, row, tap) for row, tap in enumerate(matching.student_taps)
        )
    return tuple(sorted(stage.metrics, key=lambda metric: metric.name in _LAST))


def _matched_metric(matching: Matching, row: int, tap: int) -> Metric:
    values = [period.matched_divergence[row] for period in matching.periods]
    points = tuple(
        MetricPoint(step=period.last_step, mean=value, low=value, high=value)
        for period, value in zip(matching.periods, values, strict=True)
    )
    return Metric(
        name=f"{_OF_MATCHED}_{tap}",
        num_lines=matching.num_lines,
        first=values[0],
        last=values[-1],
        least=min(values),
        greatest=max(values),
        points=points,
    )


def _plots(present: Sequence[tuple[str, Sequence[Metric]]], room: _Room) -> Iterator[LinePlot]:
    """Yield a plot of each metric with both runs in it, and one of each family and run."""
    families: dict[str, dict[str, list[Series]]] = {}
    for label, metrics in present:
        for metric in metrics:
            family, tap = tap_of(metric.name) or (metric.name, None)
            name = label or "value" if tap is None else f"tap {tap}"
            line = Series(name, metric, is_dashed=tap is None and label == _NAMES[1])
            families.setdefault(family, {}).setdefault(label, []).append(line)
    for family, by_label in families.items():
        lines = [line for own in by_label.values() for line in own]
        covered, note = range_of(lines), _note(family, lines)
        if tap_of(lines[0].metric.name) is None:
            yield line_plot(metric_title(family), note, lines, covered, room.points, room.rows)
            continue
        for label, own in by_label.items():
            title = f"{metric_title(family)}, {label}" if label else metric_title(family)
            deep = _by_depth(own)
            yield line_plot(title, note, deep, covered, room.points, room.rows)


def _by_depth(lines: Sequence[Series]) -> list[Series]:
    last = max(len(lines) - 1, 1)
    return [Series(line.name, line.metric, depth=index / last) for index, line in enumerate(lines)]


def _note(family: str, lines: Sequence[Series]) -> str:
    if family == _OF_MATCHED:
        return "From the journal: to the teacher taps that it was matched with, by their shares."
    metric = lines[0].metric
    name = family if tap_of(metric.name) is None else f"{family}_*"
    spread = any(point.low < point.high for line in lines for point in line.metric.points)
    return f"Logged as {printable(name)}." + (" Band: least to greatest." if spread else "")


def _maps(
    present: Sequence[tuple[str, StageSummary]], room: _Room
) -> tuple[tuple[HeatMap, ...], str]:
    """Return a heat map for each student tap, or for some of many."""
    maps: list[HeatMap] = []
    note = ""
    for label, stage in present:
        if stage.matching is None:
            continue
        taps = stage.matching.student_taps
        every = -(-len(taps) // room.maps) if room.maps else len(taps)
        for row in range(len(taps) - 1, -1, -every)[::-1]:
            title = f"Student tap {taps[row]}" + (f", {label}" if label else "")
            maps.append(heat_map(stage.matching, row, title))
        if every > 1:
            note = f"One student tap in {every} is drawn. The journal has all."
    return tuple(maps), note
