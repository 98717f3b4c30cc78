"""The statistics of a cache beside a plain pass, at two sizes: tokens per second, and memory.

Records are synthetic, but pass through the real writer (``cache_scale.py``). The plain pass reads
whole shards, and finds a tap's likeliest draw by comparing every draw with every other.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cache_scale import Size as CacheSize
from cache_scale import Synthetic, manifest_of, write
from harness import PrintedTable, benchmark, figures, in_fresh_process, peak_extra_bytes

from vlsi_cache.store import open_cache


@dataclass(frozen=True)
class Size:
    """Two caches of the same shape."""

    tokens: tuple[int, int] = (250_000, 1_000_000)
    taps: int = 9
    draws: int = 14


def make(folder: Path, size: Size, tokens: int) -> Path:
    """Write a cache of so many tokens."""
    shape = CacheSize(taps=size.taps, draws=size.draws)
    samples = tokens // shape.tokens_per_sample
    path = folder / str(tokens)
    manifest = manifest_of(shape, samples, shape.samples_per_shard)
    write(path, manifest, Synthetic(shape, shape.tokens_per_sample))
    return path


def plain(path: str) -> float:
    """Take the CPU seconds of a pass that counts the likeliest draws plainly."""
    began = time.process_time()
    for record in open_cache(path).iter_shards():
        ids = record.distribution.token_ids
        counts = np.zeros(ids.shape, np.int32)
        for index in range(ids.shape[-1]):
            counts += ids == ids[..., index : index + 1]
        often = counts.max(-1, keepdims=True)
        top = np.where(counts == often, ids, np.iinfo(np.int32).max).min(-1)
        kept = (ids == record.response_ids[:, None, None]).any(-1)
        for tap in range(ids.shape[1]):
            (top == top[:, tap : tap + 1]).sum(0)
        kept.sum(0)
        record.distribution.entropy.sum(0)
        record.distribution.label_log_prob.sum(0)
    return time.process_time() - began


def ours(path: str) -> float:
    """Take the CPU seconds of the statistics, with everything that they hold."""
    began = time.process_time()
    open_cache(path).statistics()
    return time.process_time() - began


def memory(path: str, small: str) -> int:
    """Take the most memory of the statistics, after a cache that loads all code."""
    open_cache(small).statistics()
    return peak_extra_bytes(lambda: open_cache(path).statistics(), torch.device("cpu"))


def measure(size: Size) -> dict[str, Any]:
    """Measure both passes over the larger cache, and the memory at both sizes."""
    with tempfile.TemporaryDirectory() as made:
        paths = [str(make(Path(made), size, tokens)) for tokens in size.tokens]
        plain_seconds = in_fresh_process(plain, paths[1])
        seconds = in_fresh_process(ours, paths[1])
        bytes_small = in_fresh_process(memory, paths[0], paths[0])
        bytes_large = in_fresh_process(memory, paths[1], paths[0])
    return {
        "size": asdict(size),
        "cpu_seconds_per_million_tokens": seconds / size.tokens[1] * 1e6,
        "plain_over_ours": plain_seconds / seconds,
        "tokens_taps_per_cpu_second": size.tokens[1] * size.taps / seconds,
        "memory_mb_small": bytes_small / 1e6,
        "memory_mb_large": bytes_large / 1e6,
    }


def tables(result: dict[str, Any]) -> list[PrintedTable]:
    """Show the figures of one run."""
    names = [name for name in result if name.startswith(("cpu_", "plain_", "tokens_", "memory_"))]
    size = result["size"]
    small, large = size["tokens"]
    title = f"{small:,} and {large:,} tokens, {size['taps']} taps, {size['draws']} draws"
    return [figures(title, result, names)]


QUICK = Size(tokens=(4_000, 12_000))
main = benchmark(measure, tables, full=Size(), quick=QUICK, rounds=None, on_cpu=True)

if __name__ == "__main__":
    main()
