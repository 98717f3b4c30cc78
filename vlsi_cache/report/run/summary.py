"""``RunSummary``: what the stages of a run have left, short enough to be looked at."""

from __future__ import annotations

from typing import Any

from vlsi_cache.jsonmodels import PathText, ReportModel

__all__ = [
    "Matching",
    "MatchingPeriod",
    "Metric",
    "MetricPoint",
    "Pace",
    "RecordedCache",
    "RunSummary",
    "StageSummary",
]


class MetricPoint(ReportModel):
    """The lines of neighbouring steps together. In a short series it is one line."""

    step: int
    """Last step."""
    mean: float
    """Mean of the values."""
    low: float
    """Least value."""
    high: float
    """Greatest value."""


class Metric(ReportModel):
    """One metric over the steps."""

    name: str
    """As it is logged."""
    num_lines: int
    """Lines that have it."""
    first: float
    """Value of the first line."""
    last: float
    """Value of the last line."""
    least: float
    """Least value."""
    greatest: float
    """Greatest value."""
    points: tuple[MetricPoint, ...]
    """At most 120 points, ascending."""


class Pace(ReportModel):
    """How long the steps took, and what they needed."""

    num_steps: int
    """Steps that were timed."""
    seconds: float
    """Seconds of these steps, without saving and evaluating."""
    waiting_seconds: float
    """Seconds of them in which the main process waited for its next batch."""
    seconds_per_step: float
    """Mean."""
    waiting_share: float
    """Waiting over all seconds of the steps."""
    tokens_per_second: float | None
    """Response tokens of all processes per second; null if none were counted."""
    device_bytes: int | None
    """Most memory of the accelerator in the main process; null without one."""
    host_bytes: int | None
    """Most memory of the main process."""


class MatchingPeriod(ReportModel):
    """The journal's lines of neighbouring steps together."""

    first_step: int
    """First step."""
    last_step: int
    """Last step."""
    share: tuple[tuple[float, ...], ...]
    """Mean share of each teacher tap (columns) in each student tap's loss (rows)."""
    matched_divergence: tuple[float, ...]
    """Mean divergence of each student tap to its teacher taps, weighted by their shares."""


class Matching(ReportModel):
    """Which teacher taps each student tap learnt from, over the steps."""

    student_taps: tuple[int, ...]
    """Blocks of the student, in the order of the rows."""
    teacher_taps: tuple[int, ...]
    """Blocks of the teacher, in the order of the columns."""
    num_lines: int
    """Lines of the journal."""
    periods: tuple[MatchingPeriod, ...]
    """At most 40, ascending. Fewer where there are many pairs of taps."""
    last_divergence: tuple[tuple[float, ...], ...]
    """Divergence of all pairs in the last line."""


class StageSummary(ReportModel):
    """One stage of a run."""

    name: str
    """Its folder's name in the run."""
    finished: bool
    """Whether its result is whole."""
    settings: dict[str, Any]
    """Everything that its result depends on."""
    last_step: int | None
    """Last step that was logged; null if none was."""
    pace: Pace | None
    """Seconds and memory; null if no steps were timed."""
    metrics: tuple[Metric, ...]
    """Losses and whatever else is logged of the training."""
    pace_metrics: tuple[Metric, ...]
    """``seconds_per_step``, ``waiting_share``, ``tokens_per_second``, ``device_bytes`` and
    ``host_bytes`` over the steps."""
    held_out: tuple[Metric, ...]
    """Figures on held-out data."""
    matching: Matching | None
    """Its journal; null if it has none."""
    notes: tuple[str, ...]
    """What could not be read, or was not recorded."""


class RecordedCache(ReportModel):
    """The cache in a run's folder, as far as its list of files says."""

    path: PathText
    """Its folder."""
    teacher: str
    """Name of the teacher."""
    num_shards: int
    """Shards of the complete cache."""
    num_shards_present: int
    """Shards that are written."""
    num_samples: int
    """Samples of the complete cache."""


class RunSummary(ReportModel):
    """What the folder of a teacher's or a student's run holds."""

    path: PathText
    """The folder."""
    cache: RecordedCache | None
    """The cache inside; null if there is none."""
    stages: tuple[StageSummary, ...]
    """The stages that were begun, in the order in which they run."""
