"""A second process that publishes a cache's shards one by one, each when the last was noticed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from support.commands import Job
from vlsi_cache.store import create_cache, open_cache

__all__ = ["begin_copy", "start_publisher"]


def begin_copy(source: Path, target: Path, shards: Sequence[int] = ()) -> None:
    """A cache like another, with only some of its shards."""
    cache = open_cache(source)
    writer = create_cache(target, cache.manifest)
    for shard in shards:
        writer.write_shard(shard, [cache[index] for index in cache.manifest.shard_range(shard)])


def start_publisher(source: Path, target: Path, arrivals: Path, shards: Sequence[int]) -> Job:
    """Publish the shards in this order; each waits for ``arrivals`` to name those before it."""
    words = ["-m", "support.publisher", source, target, arrivals, json.dumps(list(shards))]
    return Job(*words, cwd=Path(__file__).parents[1])


def _publish(source: Path, target: Path, arrivals: Path, shards: Sequence[int]) -> None:
    for shard in shards:
        there = set(range(open_cache(target).manifest.num_shards))
        there -= set(open_cache(target).missing_shards())
        while not arrivals.exists() or not there <= _noticed(arrivals):
            time.sleep(0.02)
        begin_copy(source, target, [shard])


def _noticed(arrivals: Path) -> set[int]:
    lines = arrivals.read_text(encoding="utf-8").split("\n")[:-1]
    return {shard for line in lines for shard in json.loads(line)["shards"]}


if __name__ == "__main__":
    _publish(*map(Path, sys.argv[1:4]), json.loads(sys.argv[4]))
