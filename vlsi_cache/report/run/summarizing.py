"""``summarize_run``: every stage's files to the figures of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from vlsi_cache.report.run.finding import find_stages
from vlsi_cache.report.run.matching import matching_of
from vlsi_cache.report.run.reading import iter_lines, read_record
from vlsi_cache.report.run.summary import (
    Matching,
    Metric,
    Pace,
    RecordedCache,
    RunSummary,
    StageSummary,
)
from vlsi_cache.report.run.thinning import metric_of
from vlsi_cache.stagefiles import JOURNAL_FILE, METRICS_FILE, JournalLine, MetricLine, StageRecord
from vlsi_cache.store import is_begun, open_cache

__all__ = ["summarize_run"]

_TAPS_WEIGHT: Final = "inner_weight"
_NO_FIGURES: Final = ("epoch", "total_flos")
_NO_HELD_OUT: Final = ("_runtime", "_per_second", "_time", "_samples", "_compared")
"""Ends of names that say how long an evaluation took, and over how many samples."""
_HELD_OUT: Final = ("eval_", "held_out", "heldout", "held-out")

Series = dict[str, tuple[list[int], list[float]]]


def summarize_run(path: str | Path) -> RunSummary:
    """Read what the stages of a run have left so far.

    Args:
        path: the run's output folder, or the folder of one stage.

    Raises:
        StageError: a stage's record cannot be read.
        CacheError: the cache inside is damaged.
    """
    folder = Path(path)
    stages = []
    for name, stage in find_stages(folder).items():
        record = read_record(stage)
        stages.append(_stage(name, stage, record, METRICS_FILE))
        for file in sorted(stage.glob("metrics-*.jsonl")):
            group = file.stem.removeprefix("metrics-")
            stages.append(_stage(f"{name}/{group}", stage, record, file.name))
    return RunSummary(path=str(path), cache=_cache(folder / "cache"), stages=tuple(stages))


def _cache(path: Path) -> RecordedCache | None:
    if not is_begun(path):
        return None
    cache = open_cache(path)
    total = cache.manifest.num_shards
    return RecordedCache(
        path=str(path),
        teacher=cache.manifest.teacher.name,
        num_shards=total,
        num_shards_present=total - len(cache.missing_shards()),
        num_samples=len(cache),
    )


def _stage(name: str, folder: Path, record: StageRecord, file: str) -> StageSummary:
    notes: list[str] = []
    lines = list(iter_lines(folder / file, MetricLine, notes))
    matching = None
    if file == METRICS_FILE:
        matching = matching_of(iter_lines(folder / JOURNAL_FILE, JournalLine, notes), notes)
    if not lines and not notes:
        notes.append(_nothing_logged(folder, record))
    if matching is not None:
        notes.extend(_resting(lines, matching))
    timed = [line for line in lines if line.num_steps and line.seconds > 0]
    steps = [line.step for line in lines]
    if matching is not None:
        steps.append(matching.periods[-1].last_step)
    metrics, held_out = _split(lines)
    return StageSummary(
        name=name,
        finished=record.finished,
        settings=record.settings,
        last_step=max(steps, default=None),
        pace=_pace(timed) if timed else None,
        metrics=_metrics(metrics),
        pace_metrics=_metrics(_pace_series(timed)),
        held_out=_metrics(held_out),
        matching=matching,
        notes=tuple(notes),
    )


def _resting(lines: Sequence[MetricLine], matching: Matching) -> Iterator[str]:
    """Yield a note if the taps have come to rest: their figures end at an earlier step."""
    weights = [line for line in lines if _TAPS_WEIGHT in line.metrics]
    last = matching.periods[-1].last_step
    if weights and weights[-1].metrics[_TAPS_WEIGHT] == 0 and weights[-1].step > last:
        yield (
            f"The taps rest since step {last:,}, as their weight has fallen to 0 "
            "(interaction.inner_schedule). Their matchings and figures end there."
        )


def _nothing_logged(folder: Path, record: StageRecord) -> str:
    if (folder / "tensorboard").is_dir():
        return (
            f"There is no {METRICS_FILE}, as in runs of earlier versions. TensorBoard shows the "
            "losses."
        )
    return "It had no steps to log." if record.finished else "Nothing is logged yet."


def _split(lines: Sequence[MetricLine]) -> tuple[Series, Series]:
    """Return the metrics of the training, and those on held-out data."""
    trained: Series = {}
    held_out: Series = {}
    for line in lines:
        for name, value in line.metrics.items():
            apart = "loss" not in line.metrics or name.startswith(_HELD_OUT)
            if name in _NO_FIGURES or (apart and name.endswith(_NO_HELD_OUT)):
                continue
            steps, values = (held_out if apart else trained).setdefault(name, ([], []))
            steps.append(line.step)
            values.append(value)
    return trained, held_out


def _metrics(series: Series) -> tuple[Metric, ...]:
    return tuple(metric_of(name, steps, values) for name, (steps, values) in series.items())


def _pace(timed: Sequence[MetricLine]) -> Pace:
    num_steps = sum(line.num_steps for line in timed)
    seconds = sum(line.seconds for line in timed)
    waiting = sum(line.waiting_seconds for line in timed)
    num_tokens = sum(line.num_tokens for line in timed)
    device = [line.device_bytes for line in timed if line.device_bytes is not None]
    host = [line.host_bytes for line in timed if line.host_bytes is not None]
    return Pace(
        num_steps=num_steps,
        seconds=seconds,
        waiting_seconds=waiting,
        seconds_per_step=seconds / num_steps,
        waiting_share=min(waiting / seconds, 1.0),
        tokens_per_second=num_tokens / seconds if num_tokens else None,
        device_bytes=max(device, default=None),
        host_bytes=max(host, default=None),
    )


def _pace_series(timed: Sequence[MetricLine]) -> Series:
    found: Series = {}
    for line in timed:
        values = {
            "seconds_per_step": line.seconds / line.num_steps,
            "tokens_per_second": line.num_tokens / line.seconds if line.num_tokens else None,
            "waiting_share": min(line.waiting_seconds / line.seconds, 1.0),
            "device_bytes": line.device_bytes,
            "host_bytes": line.host_bytes,
        }
        for name, value in values.items():
            if value is not None:
                steps, series = found.setdefault(name, ([], []))
                steps.append(line.step)
                series.append(float(value))
    return found
