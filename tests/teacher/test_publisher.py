"""Shards that a publisher packs in a process of its own, as it does beside an accelerator."""

from __future__ import annotations

from pathlib import Path

from support.caches import make_manifest, make_record
from vlsi_cache.store import create_cache, open_cache
from vlsi_cache.teacher.publishing import Publisher

MANIFEST = make_manifest(num_samples=6, samples_per_shard=2)


def test_shards_packed_apart_are_published_in_order(tmp_path: Path) -> None:
    published: list[int] = []
    writer = create_cache(tmp_path / "cache", MANIFEST)
    with Publisher(writer, published.append, packs_apart=True) as publisher:
        for shard in range(MANIFEST.num_shards):
            records = [make_record(MANIFEST, index) for index in MANIFEST.shard_range(shard)]
            publisher.submit(shard, records)
    assert published == [2, 2, 2]
    cache = open_cache(tmp_path / "cache")
    for index in range(6):
        kept = make_record(MANIFEST, index).distribution
        assert (cache[index].distribution.token_ids == kept.token_ids).all()
