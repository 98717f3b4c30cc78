"""Names and amounts of a run, in the words of every form of its report."""

from __future__ import annotations

import re
from typing import Final

from vlsi_cache.errors import counted, printable
from vlsi_cache.phases import duration
from vlsi_cache.report.run.summary import Metric, RecordedCache, StageSummary
from vlsi_cache.report.words import MOST_OF_NAME, bytes_text

__all__ = [
    "cache_text",
    "metric_text",
    "metric_title",
    "pace_cells",
    "pace_rows",
    "state_text",
    "tap_of",
    "tick_text",
    "value_of",
]

_TAP: Final = re.compile(r"(?:(.*)_)?tap_(\d+)")
_TITLES: Final = {
    "loss": "Loss",
    "grad_norm": "Norm of the gradient",
    "learning_rate": "Learning rate",
    "cross_entropy": "Cross-entropy of the labels",
    "frequencies": "Loss of the bare frequencies of the tokens",
    "tap": "Loss by tap",
    "match_tap": "Mean teacher tap by student tap",
    "matched_tap": "Divergence to the matched teacher taps",
    "seconds_per_step": "Seconds per step",
    "tokens_per_second": "Response tokens per second",
    "waiting_share": "Share of the time that waits for data",
    "device_bytes": "Peak memory of the accelerator",
    "host_bytes": "Peak memory of the process",
}
_MOST_WRITTEN: Final = 1e6
"""From here on a number stands with its power of ten."""
_DIVERGENCES: Final = {
    "kl": "Divergence to the teacher (forward)",
    "ce": "Cross-entropy",
}


def tap_of(name: str) -> tuple[str, int] | None:
    """Return the family and the tap of a metric of one tap, such as ``kl_tap`` and 3."""
    found = _TAP.fullmatch(name)
    return None if found is None else ("_".join(filter(None, (found[1], "tap"))), int(found[2]))


def metric_title(name: str) -> str:
    """Return what a metric, or a family of a tap's metrics, is called."""
    if name in _TITLES:
        return _TITLES[name]
    kind, _, end = name.rpartition("_")
    if end in ("tap", "output") and kind:
        where = "by tap" if end == "tap" else "at the output"
        return f"{_DIVERGENCES.get(kind, f'Divergence to the teacher ({kind})')} {where}"
    return printable(name, MOST_OF_NAME)


def value_of(metric: Metric, value: float) -> str:
    """Return a value of a metric in its unit."""
    return metric_text(metric.name, value)


def metric_text(name: str, value: float) -> str:
    """Return a value of a named metric in its unit."""
    if name.endswith("_bytes"):
        return bytes_text(round(value))
    if name.endswith("_share"):
        return f"{value:.1%}"
    return f"{value:,.0f}" if 1000 <= abs(value) < _MOST_WRITTEN else f"{value:.4g}"


def tick_text(name: str, value: float) -> str:
    """Return a round value of a named metric, short enough to stand beside a plot."""
    if name.endswith("_bytes"):
        return bytes_text(round(value)).replace(".0 ", " ").replace("0 bytes", "0")
    if name.endswith("_share"):
        return f"{value * 100:.3g}%"
    return f"{value:,.0f}" if 1000 <= abs(value) < _MOST_WRITTEN else f"{value:.3g}"


def state_text(stage: StageSummary) -> str:
    """Return how far a stage is."""
    state = "finished" if stage.finished else "unfinished"
    return state if stage.last_step is None else f"{state}, step {stage.last_step:,}"


def cache_text(cache: RecordedCache) -> str:
    """Return how complete the cache of a run is."""
    present, total = cache.num_shards_present, cache.num_shards
    state = "complete" if present == total else f"{present:,} of {total:,} shards"
    return printable(f"{state}, {counted(cache.num_samples, 'sample')}, teacher {cache.teacher}")


def pace_cells(stage: StageSummary) -> tuple[str, ...]:
    """Return time, time per step, tokens per second, waiting and both memories, short."""
    pace = stage.pace
    if pace is None:
        return ("–",) * 6
    tokens, device, host = pace.tokens_per_second, pace.device_bytes, pace.host_bytes
    return (
        duration(pace.seconds),
        f"{pace.seconds_per_step:.3g} s",
        "–" if tokens is None else f"{tokens:,.0f}",
        f"{pace.waiting_share:.1%}",
        "–" if device is None else bytes_text(device),
        "–" if host is None else bytes_text(host),
    )


def pace_rows(stage: StageSummary) -> list[tuple[str, str]]:
    """Return name and value of what a stage's steps took."""
    pace = stage.pace
    if pace is None:
        return []
    rows = [
        ("time", f"{duration(pace.seconds)} for {counted(pace.num_steps, 'step')}"),
        ("per step", f"{pace.seconds_per_step:.3g} s"),
        ("waiting", f"{pace.waiting_share:.1%} of it for data"),
    ]
    if pace.tokens_per_second is not None:
        rows.append(("throughput", f"{pace.tokens_per_second:,.0f} response tokens/s"))
    if pace.device_bytes is not None:
        rows.append(("accelerator", f"{bytes_text(pace.device_bytes)} at most"))
    if pace.host_bytes is not None:
        rows.append(("process", f"{bytes_text(pace.host_bytes)} at most"))
    return rows
