"""The statistics of a cache beside a plain pass, and the command that takes them at two sizes.

Records are synthetic, but pass through the real writer (``cache_scale.py``). They are the recipe's
default record, as the product's own recorder makes it, and draws alone. The plain pass reads whole
shards. Where there are draws alone it compares every draw with every other to find the likeliest.

``vlsi-cache inspect`` reads a large cache of the default record, and one of a tenth of its size. It
has as many processes as there are cores. The memory is that of the largest of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from cache_scale import Size as CacheSize
from cache_scale import Synthetic, manifest_of, write_at_once
from harness import PrintedTable, benchmark, figures, in_fresh_process

from vlsi_cache.recipe import CacheSection
from vlsi_cache.store import open_cache
from vlsi_cache.store.cache.figures.counting import available_cores

DEFAULT = (CacheSection().k, CacheSection().m)
DRAWS = (0, 14)
METER = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
subprocess.run([sys.executable, *sys.argv[1:]], check=True)
seconds, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
figures = {"seconds": seconds, "cpu_seconds": used.ru_utime + used.ru_stime}
print(json.dumps(figures | {"process_mb": used.ru_maxrss * 1024 / 1e6}), end="")
"""
"""A small process that measures a command. What its own parent holds would count otherwise."""


@dataclass(frozen=True)
class Size:
    """Caches of the same shape."""

    tokens: int = 1_000_000
    """Tokens of the caches that one process reads."""
    large: int = 10_000_000
    """Tokens of the cache that the command reads."""
    taps: int = 9
    vocabulary: int = 49_152
    pool: int = 2**14
    """Different tokens of the made-up records."""


def make(folder: Path, size: Size, record: tuple[int, int], counts: Sequence[int]) -> list[str]:
    """Write caches of so many tokens each, and return their paths."""
    likely, draws = record
    shape = CacheSize(
        taps=size.taps, likely=likely, draws=draws, vocabulary=size.vocabulary, pool=size.pool
    )
    records = Synthetic(shape, shape.tokens_per_sample)
    paths = []
    for tokens in counts:
        manifest = manifest_of(shape, tokens // shape.tokens_per_sample, shape.samples_per_shard)
        path = folder / f"{likely}-{draws}-{tokens}"
        write_at_once(path, manifest, records)
        paths.append(str(path))
    return paths


def plain(path: str) -> float:
    """Take the CPU seconds of a pass that counts the likeliest tokens plainly."""
    began = time.process_time()
    for record in open_cache(path).iter_shards():
        ids, k = record.distribution.token_ids, record.distribution.k
        top = ids[..., 0]
        if not k:
            counts = np.zeros(ids.shape, np.int32)
            for index in range(ids.shape[-1]):
                counts += ids == ids[..., index : index + 1]
            often = counts.max(-1, keepdims=True)
            top = np.where(counts == often, ids, np.iinfo(np.int32).max).min(-1)
        kept = (ids == record.response_ids[:, None, None]).any(-1)
        for tap in range(ids.shape[1]):
            (top == top[:, tap : tap + 1]).sum(0)
        kept.sum(0)
        record.distribution.captured_mass().sum(0)
        record.distribution.entropy.sum(0)
        record.distribution.label_log_prob.sum(0)
    return time.process_time() - began


def ours(path: str) -> float:
    """Take the CPU seconds of the statistics, with everything that they hold."""
    began = time.process_time()
    open_cache(path).statistics()
    return time.process_time() - began


def both(path: str) -> tuple[float, float]:
    """Take the CPU seconds of the plain pass and of the statistics."""
    return plain(path), ours(path)


def inspect(path: str) -> dict[str, float]:
    """Run ``vlsi-cache inspect``, and take its seconds and the memory of its largest process."""
    command = [sys.executable, "-c", METER, "-m", "vlsi_cache.cli", "inspect", path, "--json"]
    shown = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    summary, used = (json.loads(line) for line in shown.rsplit("\n", 1))
    return {
        "tokens": summary["num_tokens"],
        **used,
        "bytes_per_token_tap": summary["bytes_per_token_tap"],
    }


def measure_record(path: str, size: Size) -> dict[str, float]:
    """Measure both passes over a cache."""
    plain_seconds, seconds = in_fresh_process(both, path)
    return {
        "cpu_seconds_per_million_tokens": seconds / size.tokens * 1e6,
        "plain_over_ours": plain_seconds / seconds,
        "tokens_taps_per_cpu_second": size.tokens * size.taps / seconds,
    }


@click.option("--tokens", type=click.IntRange(2_000), help="Tokens that all cores read.")
@click.option("--folder", type=click.Path(path_type=Path), help="Parent of the temporary caches.")
def measure(size: Size, tokens: int | None, folder: Path | None) -> dict[str, Any]:
    """Measure both records by one process, and the default by all cores."""
    size = replace(size, large=tokens or size.large)
    with tempfile.TemporaryDirectory(dir=folder) as made:
        # all are made first, as long as this process has read nothing
        large = (size.large // 10, size.large)
        path, *paths = make(Path(made), size, DEFAULT, (size.tokens, *large))
        (drawn,) = make(Path(made), size, DRAWS, (size.tokens,))
        rows = [inspect(one) for one in paths]
        result = measure_record(path, size)
        draws = measure_record(drawn, size)
    return {
        **result,
        "draws_alone": draws,
        "inspect": rows,
        "cores": available_cores(),
        "size": asdict(size),
    }


def tables(result: dict[str, Any]) -> list[PrintedTable]:
    """Show the figures of one run."""
    names = [name for name, value in result.items() if isinstance(value, float)]
    title = f"{result['size']['tokens']:,} tokens, {result['size']['taps']} taps: "
    k, m = DEFAULT
    return [
        figures(f"{title}{k} likely tokens and {m} draws", result, names),
        figures(f"{title}{DRAWS[1]} draws alone", result["draws_alone"], names),
        PrintedTable(
            f"vlsi-cache inspect on {result['cores']} cores, {k} likely tokens and {m} draws",
            tuple(result["inspect"][0]),
            [
                tuple(f"{it:,}" if isinstance(it, int) else f"{it:.3g}" for it in row.values())
                for row in result["inspect"]
            ],
            named=0,
        ),
    ]


QUICK = Size(tokens=12_000, large=20_000, pool=2**11)
main = benchmark(measure, tables, full=Size(), quick=QUICK, rounds=None, on_cpu=True)

if __name__ == "__main__":
    main()
