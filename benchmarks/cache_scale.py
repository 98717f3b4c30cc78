"""Opening and reading caches of growing size: the cost of a token must not grow with the cache.

Records are synthetic, but pass through the real writer. Neighbouring taps share most of their
draws, and frequencies fall steeply over the vocabulary. With `--record default` the product's own
recorder makes them (`material/records.py`). Two kinds of cache are made:

- one of very many tiny shards, as a cluster writes them: seconds and memory to open it
- some of ever more full shards: seconds to open, to read one sample of a cache just opened (chosen
  at random, and the chunk around it is decoded), to read everything in order, and to write

A cost per token is flat if the rows of the table are alike.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from harness import PrintedTable, benchmark, in_fresh_process, peak_extra_bytes, seconds
from material.made_up import made_up_manifest

from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.recipe import CacheSection
from vlsi_cache.store import SampleRecord, create_cache, open_cache

WRITERS = 2
"""Processes that share the writing of very many tiny shards."""
LONG_TOKENS = 2_000_000
"""A cache of so many tokens or more is read once: its one pass is a mean already."""


@dataclass(frozen=True)
class Size:
    """Shape of the records, and of the two kinds of cache."""

    taps: int = 3
    likely: int = 0
    draws: int = 4
    vocabulary: int = 32_000
    tokens_per_sample: int = 200
    samples_per_shard: int = 250
    pool: int = 2**16
    """Different tokens of the made-up records."""
    num_tokens: tuple[int, ...] = (100_000, 1_000_000, 10_000_000)
    num_shards: int = 10_000
    samples: int = 20


QUICK = Size(num_tokens=(20_000, 60_000), num_shards=50, samples=5)


class Synthetic:
    """Records of any number of samples, cut from one pool of made-up tokens."""

    def __init__(self, size: Size, tokens_per_sample: int) -> None:
        self._count = tokens_per_sample
        if size.likely:
            from material.records import likely_and_drawn  # the recorder's libraries load slowly

            self._pool, self._labels = likely_and_drawn(
                size.pool,
                taps=size.taps,
                vocabulary=size.vocabulary,
                k=size.likely,
                m=size.draws,
            )
            return
        generator = np.random.default_rng(0)
        shape = (size.pool, size.taps, size.draws)
        # most draws are those of the tap above, as coupling makes them
        fresh = generator.random(shape)
        fresh[:, :, :] = np.where(generator.random(shape) < 0.2, fresh, fresh[:, -1:])
        ids = np.sort((size.vocabulary * fresh**8).astype(np.int32), axis=-1)
        values = 8 * generator.random((2, *shape[:2]), dtype=np.float32)
        empty = np.zeros((*shape[:2], 0), np.float32)
        self._pool = SparseDistribution(ids, empty, values[0], -values[1])
        self._labels = ids[:, -1, 0]

    def record(self, index: int) -> SampleRecord:
        """Return the record of a sample."""
        start = index * 97 % (len(self._pool) - self._count)
        part = slice(start, start + self._count)
        key = hashlib.sha256(str(index).encode()).hexdigest()
        return SampleRecord(f"sample-{index}", key, self._labels[part], self._pool[part])


def manifest_of(size: Size, num_samples: int, samples_per_shard: int) -> CacheManifest:
    """Build the manifest of a cache of synthetic records."""
    return made_up_manifest(
        num_samples,
        vocab_size=size.vocabulary,
        taps=range(size.taps - 1),
        k=size.likely,
        m=size.draws,
        drawn_from="whole" if size.likely else "rest",
        samples_per_shard=samples_per_shard,
    )


def write(
    path: Path, manifest: CacheManifest, records: Synthetic, first: int = 0, step: int = 1
) -> None:
    """Write the shards of a cache, or every ``step``-th from the ``first``."""
    writer = create_cache(path, manifest)
    for shard in range(first, manifest.num_shards, step):
        writer.write_shard(shard, [records.record(i) for i in manifest.shard_range(shard)])


def write_at_once(path: Path, manifest: CacheManifest, records: Synthetic) -> None:
    """Write the shards of a cache by several processes. They are forked: nothing is read before."""
    job = partial(write, path, manifest, records, step=WRITERS)
    with ProcessPoolExecutor(WRITERS, multiprocessing.get_context("fork")) as pool:
        list(pool.map(job, range(WRITERS)))


def median_open(path: Path, rounds: int) -> float:
    """Return the median of the seconds to open a cache."""
    return statistics.median(seconds(lambda: open_cache(path)) for _ in range(rounds))


def read_all(path: Path) -> None:
    """Read every shard in order."""
    for _ in open_cache(path).iter_shards():
        pass


def read_sample(path: Path, index: int) -> float:
    """Time one sample of a cache just opened."""
    cache = open_cache(path)
    return seconds(lambda: cache[index])


def opening_bytes(path: str, small: str) -> int:
    """Return the most memory that opening a cache takes.

    A small cache is opened first, so that all code is loaded.
    """
    open_cache(small)
    return peak_extra_bytes(lambda: open_cache(path), torch.device("cpu"))


def measure_row(folder: Path, size: Size, num_tokens: int, rounds: int) -> dict[str, Any]:
    """Measure a cache of full shards and about ``num_tokens`` tokens."""
    num_samples = max(num_tokens // size.tokens_per_sample, 1)
    manifest = manifest_of(size, num_samples, size.samples_per_shard)
    path = folder / str(num_tokens)
    num_tokens = num_samples * size.tokens_per_sample
    records = Synthetic(size, size.tokens_per_sample)
    written = seconds(lambda: write(path, manifest, records))
    passes = 1 if num_tokens >= LONG_TOKENS else rounds
    read = statistics.median(seconds(lambda: read_all(path)) for _ in range(passes))
    chosen = np.random.default_rng(0).integers(num_samples, size=size.samples).tolist()
    return {
        "num_tokens": num_tokens,
        "num_shards": manifest.num_shards,
        "seconds_per_million_tokens": read / num_tokens * 1e6,
        "write_seconds_per_million_tokens": written / num_tokens * 1e6,
        "random_sample_seconds": statistics.median(read_sample(path, i) for i in chosen),
        "open_seconds": median_open(path, rounds),
        "bytes_per_token_tap": open_cache(path).size_bytes() / num_tokens / size.taps,
    }


def measure_opening(folder: Path, size: Size, rounds: int) -> dict[str, Any]:
    """Measure a cache of very many shards of one short sample each.

    A second cache, of a hundredth of the shards, is opened first.
    """
    records = Synthetic(size, 8)
    path = folder / "many-shards"
    small = folder / "few-shards"
    manifest = manifest_of(size, size.num_shards, 1)
    written = seconds(lambda: write_at_once(path, manifest, records))
    write(small, manifest_of(size, max(size.num_shards // 100, 1), 1), records)
    index_bytes = (path / "index.json").stat().st_size
    peak = in_fresh_process(opening_bytes, str(path), str(small))
    return {
        "open_seconds": median_open(path, rounds),
        "open_peak_bytes": peak,
        "index_bytes": index_bytes,
        "peak_over_index_bytes": peak / index_bytes,
        "write_seconds_per_shard": written / size.num_shards,
    }


@click.option("--tokens", type=click.IntRange(1), help="Tokens of the largest cache.")
@click.option("--folder", type=click.Path(path_type=Path), help="Parent of the temporary caches.")
@click.option(
    "--record",
    type=click.Choice(("draws", "default")),
    default="draws",
    help="Few draws alone, or the recipe's default record.",
)
def measure(
    size: Size, rounds: int, tokens: int | None, folder: Path | None, record: str
) -> dict[str, Any]:
    """Measure the opening of very many shards, then every cache of full shards."""
    if record == "default":
        size = replace(size, likely=CacheSection().k, draws=CacheSection().m, pool=2**14)
    size = replace(size, num_tokens=_sizes(tokens, size.num_tokens))
    with tempfile.TemporaryDirectory(dir=folder) as made:
        opening = measure_opening(Path(made), size, rounds)
        rows = [measure_row(Path(made), size, count, rounds) for count in size.num_tokens]
    costs = [row["seconds_per_million_tokens"] for row in rows]
    return {
        **opening,
        "rows": rows,
        "most_over_least_seconds_per_token": max(costs) / min(costs),
        "size": asdict(size),
    }


def tables(result: dict[str, Any]) -> list[PrintedTable]:
    """Show the caches of full shards, then the opening of very many."""
    size = result["size"]
    headings = (
        "tokens",
        "shards",
        "read (s per million)",
        "write (s per million)",
        "one sample (s)",
        "open (s)",
        "bytes (per token, tap)",
    )
    rows = [
        tuple(f"{n:,}" if isinstance(n, int) else f"{n:.3g}" for n in row.values())
        for row in result["rows"]
    ]
    opening = (
        f"{result['open_seconds']:.3f}",
        f"{result['open_peak_bytes'] / 2**20:.1f}",
        f"{result['index_bytes'] / 2**20:.1f}",
        f"{result['write_seconds_per_shard'] * 1e3:.1f}",
    )
    return [
        PrintedTable(
            f"{size['taps']} taps, {size['likely']} likely tokens and {size['draws']} draws, "
            f"{size['tokens_per_sample']} tokens per sample, {size['samples_per_shard']} samples "
            "per shard",
            headings,
            rows,
            named=0,
        ),
        PrintedTable(
            f"a cache of {size['num_shards']:,} shards",
            ("open (s)", "memory (MiB)", "index (MiB)", "write (ms per shard)"),
            [opening],
            named=0,
        ),
    ]


def _sizes(largest: int | None, usual: Sequence[int]) -> tuple[int, ...]:
    if largest is None:
        return tuple(usual)
    return (*(count for count in usual if count < largest), largest)


main = benchmark(measure, tables, full=Size(), quick=QUICK, rounds=3, on_cpu=True)

if __name__ == "__main__":
    main()
