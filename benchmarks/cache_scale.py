"""Opening and reading caches of growing size: what a token costs must not depend on their number.

Records are synthetic, but pass through the real writer: draws that neighbouring taps mostly share,
from a vocabulary whose frequencies fall steeply. Two kinds of cache are made:

- of very many tiny shards, as a cluster writes them: seconds and memory to open it
- of ever more full shards: seconds to open it, to read one sample of a cache just opened (chosen at
  random; the chunk around it is decoded), to read everything in order, and to write it

A cost per token is flat if the rows of the table are alike.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from measurement import device_of, in_fresh_process, machine, peak_extra_bytes
from rich.console import Console
from rich.table import Table

from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.store import SampleRecord, create_cache, open_cache

POOL_TOKENS = 2**16
WRITERS = 2
"""Processes that share the writing of very many tiny shards."""
LONG_TOKENS = 2_000_000
"""Rows of so many tokens or more are read once: their one pass is a mean already."""


@dataclass(frozen=True)
class Size:
    """Shape of the records, and of the two kinds of cache."""

    taps: int = 3
    draws: int = 4
    vocabulary: int = 32_000
    tokens_per_sample: int = 200
    samples_per_shard: int = 250
    num_tokens: tuple[int, ...] = (100_000, 1_000_000, 10_000_000)
    num_shards: int = 10_000
    samples: int = 20


QUICK = Size(num_tokens=(20_000, 60_000), num_shards=50, samples=5)


class Synthetic:
    """Any sample's record, cut from one pool of made-up tokens."""

    def __init__(self, size: Size, tokens_per_sample: int) -> None:
        self._count = tokens_per_sample
        generator = np.random.default_rng(0)
        shape = (POOL_TOKENS, size.taps, size.draws)
        # most draws are those of the tap above, as coupling makes them
        fresh = generator.random(shape)
        fresh[:, :, :] = np.where(generator.random(shape) < 0.2, fresh, fresh[:, -1:])
        ids = np.sort((size.vocabulary * fresh**8).astype(np.int32), axis=-1)
        values = 8 * generator.random((2, *shape[:2]), dtype=np.float32)
        empty = np.zeros((*shape[:2], 0), np.float32)
        self._pool = SparseDistribution(ids, empty, values[0], -values[1])

    def record(self, index: int) -> SampleRecord:
        """The record of a sample."""
        start = index * 97 % (POOL_TOKENS - self._count)
        part = self._pool[start : start + self._count]
        key = hashlib.sha256(str(index).encode()).hexdigest()
        return SampleRecord(f"sample-{index}", key, part.token_ids[:, -1, 0], part)


def manifest_of(size: Size, num_samples: int, samples_per_shard: int) -> CacheManifest:
    """What a cache of so many samples begins with."""
    digest = hashlib.sha256(b"synthetic").hexdigest()
    teacher = {"name": "synthetic", "model_type": "none", "weights_fingerprint": digest}
    return CacheManifest.model_validate(
        {
            "vlsi_cache_version": "benchmark",
            "teacher": teacher,
            "verbalizers_fingerprint": digest,
            "tokenizer": {"name": "none", "hash": digest, "vocab_size": size.vocabulary},
            "chat_template_hash": digest,
            "dataset": {"source": "none", "fingerprint": digest, "num_samples": num_samples},
            "taps": (*range(size.taps - 1), -1),
            "sampling": {"k": 0, "m": size.draws, "seed": 0},
            "samples_per_shard": samples_per_shard,
            "batch_size": 8,
            "dtype": "float32",
        }
    )


def write(
    path: Path, manifest: CacheManifest, records: Synthetic, share: int = 0, count: int = 1
) -> None:
    """Fill a cache, or one of so many shares of it."""
    writer = create_cache(path, manifest)
    for shard in range(share, manifest.num_shards, count):
        writer.write_shard(shard, [records.record(i) for i in manifest.shard_range(shard)])


def seconds(step: Callable[[], object]) -> float:
    """How long a step takes."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def median_open(path: Path, rounds: int) -> float:
    """Median seconds to open a cache."""
    return statistics.median(seconds(lambda: open_cache(path)) for _ in range(rounds))


def read_all(path: Path) -> None:
    """Every shard in order."""
    for _ in open_cache(path).iter_shards():
        pass


def read_sample(path: Path, index: int) -> float:
    """Seconds to read one sample of a cache just opened."""
    cache = open_cache(path)
    return seconds(lambda: cache[index])


def opening_bytes(path: str, small: str) -> int:
    """Most memory that opening a cache takes; another is opened before, so that code is loaded."""
    open_cache(small)
    return peak_extra_bytes(lambda: open_cache(path), device_of("cpu"))


def measure_row(folder: Path, size: Size, num_tokens: int, rounds: int) -> dict[str, Any]:
    """A cache of full shards, of about so many tokens."""
    num_samples = max(num_tokens // size.tokens_per_sample, 1)
    manifest = manifest_of(size, num_samples, size.samples_per_shard)
    path, num_tokens = folder / str(num_tokens), num_samples * size.tokens_per_sample
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
    """A cache of very many shards of one short sample each, and a hundredth of it beside."""
    records = Synthetic(size, 8)
    path, small = folder / "many-shards", folder / "few-shards"
    # forked before the library has threads
    job = partial(write, path, manifest_of(size, size.num_shards, 1), records, count=WRITERS)
    with ProcessPoolExecutor(WRITERS, multiprocessing.get_context("fork")) as pool:
        written = seconds(lambda: list(pool.map(job, range(WRITERS))))
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


def measure(size: Size, rounds: int, folder: Path) -> dict[str, Any]:
    """Every figure of the benchmark."""
    opening = measure_opening(folder, size, rounds)
    rows = [measure_row(folder, size, count, rounds) for count in size.num_tokens]
    costs = [row["seconds_per_million_tokens"] for row in rows]
    return {
        **opening,
        "rows": rows,
        "most_over_least_seconds_per_token": max(costs) / min(costs),
        "size": asdict(size),
        "rounds": rounds,
        **machine(device_of("cpu")),
    }


def render(result: dict[str, Any]) -> None:
    """The figures as a table."""
    size, console = result["size"], Console()
    table = Table(
        title=f"{size['taps']} taps, {size['draws']} draws, {size['tokens_per_sample']} tokens per "
        f"sample, {size['samples_per_shard']} samples per shard",
        caption=f"{result['device']}, {result['threads']} threads",
    )
    for name in result["rows"][0]:
        heading = name.removeprefix("num_").replace("_seconds", " s").replace("seconds_", "read s ")
        whole = name.startswith("num_")  # a number cut short would be another
        table.add_column(heading.replace("_", " "), justify="right", no_wrap=whole, min_width=5)
    for row in result["rows"]:
        table.add_row(*(f"{n:,}" if isinstance(n, int) else f"{n:.3g}" for n in row.values()))
    console.print(table)
    console.print(
        f"cache of {size['num_shards']:,} shards: opened in {result['open_seconds']:.3f} s, with "
        f"{result['open_peak_bytes'] / 2**20:.1f} MiB of memory for an index of "
        f"{result['index_bytes'] / 2**20:.1f} MiB; "
        f"{result['write_seconds_per_shard'] * 1e3:.1f} ms to write a shard"
    )


def _sizes(largest: int | None, usual: Sequence[int]) -> tuple[int, ...]:
    if largest is None:
        return tuple(usual)
    return (*(count for count in usual if count < largest), largest)


@click.command(help=__doc__.splitlines()[0])
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option("--quick", is_flag=True, help="Small caches: a smoke, not a measurement.")
@click.option("--device", default="auto", show_default=True, help="Not used: all is on the CPU.")
@click.option("--tokens", type=click.IntRange(1), help="Tokens of the largest cache.")
@click.option("--rounds", default=3, show_default=True, help="Timed repetitions.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where caches are made for a time.")
def main(
    as_json: bool, quick: bool, device: str, tokens: int | None, rounds: int, folder: Path | None
) -> None:
    device_of(device)
    size = QUICK if quick else Size()
    size = replace(size, num_tokens=_sizes(tokens, size.num_tokens))
    with tempfile.TemporaryDirectory(dir=folder) as made:
        result = measure(size, rounds, Path(made))
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        render(result)


if __name__ == "__main__":
    main()
