"""CPU time of a record: made from the logits, packed into a shard, and read back.

The head and the features are random: a tap is the one after it with noise, so that neighbours share
draws. Each record is made by the product's own recorder, whose product with the head is timed by
itself and taken off. Whole shards are written in memory and read again. All takes turns on one
thread, and the figures are medians of microseconds per token and tap.

- together_over_draws_recording: likely tokens and draws together over draws alone, in recording
  with the head's product
- together_over_draws_reading: the same in reading
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cache_size import Layout
from harness import PrintedTable, benchmark
from material.made_up import made_up_manifest

from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.models import Head
from vlsi_cache.sampling import TapRecorder, vocabulary_order
from vlsi_cache.store import SampleRecord, create_cache, open_cache

DRAWS: Layout = (0, 14, "rest")
TOGETHER: Layout = (4, 12, "whole")
RECORDS: dict[str, Layout] = {
    "14 draws": DRAWS,
    "4 likely and 12 draws together": TOGETHER,
    "4 likely and 4 draws of the rest": (4, 4, "rest"),
}
READ_TIMES = 8
"""Copies of the tokens in a cache, so that what is read outweighs opening it."""


@dataclass(frozen=True)
class Size:
    """The head, and how much is recorded."""

    vocabulary: int = 49_152
    hidden: int = 576
    taps: int = 7
    tokens: int = 512


QUICK = Size(vocabulary=640, hidden=16, taps=2, tokens=24)


class Source:
    """Features of every tap and the output at some tokens."""

    def __init__(self, size: Size) -> None:
        generator = torch.Generator().manual_seed(0)
        self.size = size
        weight = torch.randn(size.vocabulary, size.hidden, generator=generator)
        self.head = Head(weight * 3 / size.hidden**0.5)
        self.order = vocabulary_order(self.head.weight)
        last = torch.randn(size.tokens, size.hidden, generator=generator)
        features = [last]
        for _ in range(size.taps):
            noise = torch.randn(last.shape, generator=generator)
            features.insert(0, 0.9 * features[0] + 0.4 * noise)
        self.features = features
        self.labels = torch.randint(size.vocabulary, (size.tokens,), generator=generator)

    @property
    def count(self) -> int:
        """Tokens times taps, the output included."""
        return self.size.tokens * len(self.features)

    def product(self) -> None:
        """Make the logits alone."""
        self.head.logits(torch.stack(self.features))

    def recording(self, layout: Layout) -> Callable[[], SparseDistribution]:
        """Return what makes one record."""
        k, m, drawn_from = layout
        recorder = TapRecorder(self.head, k=k, m=m, drawn_from=drawn_from, order=self.order)
        shape = (self.size.tokens, len(self.features), recorder.num_uniforms)
        generator = torch.Generator().manual_seed(1)
        dice = torch.rand(shape, dtype=torch.float64, generator=generator)
        return lambda: recorder.record(self.features, self.labels, dice)

    def manifest(self, layout: Layout) -> CacheManifest:
        """Build the manifest of a cache of one shard."""
        k, m, drawn_from = layout
        return made_up_manifest(
            READ_TIMES,
            vocab_size=self.size.vocabulary,
            taps=range(self.size.taps),
            k=k,
            m=m,
            drawn_from=drawn_from,
            samples_per_shard=READ_TIMES,
        )

    def write(self, path: Path, layout: Layout, made: SparseDistribution) -> None:
        """Write a cache that holds the record as often as it is read."""
        labels = self.labels.numpy().astype(np.int32)
        records = [
            SampleRecord(f"sample-{index}", f"{index + 1:064x}", labels, made)
            for index in range(READ_TIMES)
        ]
        create_cache(path, self.manifest(layout)).write_shard(0, records)


def measure(size: Size, rounds: int) -> dict[str, Any]:
    """Time all records, which take turns."""
    torch.set_num_threads(1)
    source = Source(size)
    recordings = {name: source.recording(layout) for name, layout in RECORDS.items()}
    made = {name: recording() for name, recording in recordings.items()}
    found: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds):
            found.setdefault(("product", "product"), []).append(_cpu_seconds(source.product))
            for number, (name, layout) in enumerate(RECORDS.items()):
                path = Path(folder, f"{turn}-{number}")
                steps = {
                    "recording": recordings[name],
                    "writing": partial(source.write, path, layout, made[name]),
                    "reading": partial(_read, path),
                }
                for what, step in steps.items():
                    found.setdefault((name, what), []).append(_cpu_seconds(step))
    micros = {key: statistics.median(times) / source.count * 1e6 for key, times in found.items()}
    return {"size": asdict(size), **_result(micros)}


def _result(micros: dict[tuple[str, str], float]) -> dict[str, Any]:
    """Return the rows, and the ratios of the two records that a default is chosen from."""
    product = micros["product", "product"]
    rows = [
        {
            "name": name,
            "recording_micros": micros[name, "recording"],
            "sampling_micros": micros[name, "recording"] - product,
            "writing_micros": micros[name, "writing"] / READ_TIMES,
            "reading_micros": micros[name, "reading"] / READ_TIMES,
        }
        for name in RECORDS
    ]
    draws, together = rows[:2]
    return {
        "product_micros": product,
        "rows": rows,
        "together_over_draws_recording": together["recording_micros"] / draws["recording_micros"],
        "together_over_draws_reading": together["reading_micros"] / draws["reading_micros"],
    }


def _read(path: Path) -> None:
    for _ in open_cache(path).iter_shards():
        pass


def _cpu_seconds(step: Callable[[], object]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def tables(result: dict[str, Any]) -> list[PrintedTable]:
    """Show the rows."""
    size = result["size"]
    columns = {
        "recording_micros": "recording with the head's product",
        "sampling_micros": "recording without it",
        "writing_micros": "writing",
        "reading_micros": "reading",
    }
    return [
        PrintedTable(
            f"microseconds of CPU time per token and tap, V = {size['vocabulary']:,}, "
            f"{size['taps']} taps and the output; the product takes {result['product_micros']:.0f}",
            ("record", *columns.values()),
            [(row["name"], *(f"{row[it]:.1f}" for it in columns)) for row in result["rows"]],
        )
    ]


main = benchmark(measure, tables, full=Size(), quick=QUICK, on_cpu=True)

if __name__ == "__main__":
    main()
