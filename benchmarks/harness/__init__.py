"""What every benchmark shares: its command line, its tables, its clocks and memory meters."""

from harness.command import benchmark
from harness.measurement import (
    in_fresh_process,
    machine,
    median_seconds,
    peak_extra_bytes,
    seconds,
    wait_for,
)
from harness.results import mean_and_interval, shown, written_once
from harness.tables import PrintedTable, contenders, figures

__all__ = [
    "PrintedTable",
    "benchmark",
    "contenders",
    "figures",
    "in_fresh_process",
    "machine",
    "mean_and_interval",
    "median_seconds",
    "peak_extra_bytes",
    "seconds",
    "shown",
    "wait_for",
    "written_once",
]
