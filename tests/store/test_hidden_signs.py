"""Signs of hidden states in shards: kept as they are, and a hole is damage."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from support.caches import HIDDEN, make_cache, make_manifest, make_record
from vlsi_cache.errors import CacheError
from vlsi_cache.store import create_cache, open_cache
from vlsi_cache.store.shards.arrays import encode_shard, find_problem, separate
from vlsi_cache.store.shards.records import ShardRecord


def test_signs_come_back_as_they_were_in_any_way_of_reading(tmp_path: Path) -> None:
    manifest = make_manifest(hidden=HIDDEN, drawn_from="whole")
    cache = make_cache(tmp_path / "cache", manifest)
    wanted = [make_record(manifest, index).hidden_signs for index in range(len(cache))]
    by_index = [cache[index].hidden_signs for index in range(len(cache))]
    in_order = [record.hidden_signs for record in cache]
    in_parts = [
        record.hidden_signs
        for shard in cache.present_shards()
        for part in cache.iter_parts(shard, 3)
        for record in part
    ]
    for found in (by_index, in_order, in_parts):
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, other)
    summary = cache.statistics()
    assert summary.hidden == manifest.hidden
    without = make_cache(tmp_path / "without", make_manifest(drawn_from="whole")).statistics()
    assert without.hidden is None
    assert summary.bytes_total > without.bytes_total + 8 * summary.num_tokens


def test_a_hole_in_the_signs_is_damage() -> None:
    manifest = make_manifest(hidden=HIDDEN)
    record = make_record(manifest, 0)
    arrays = separate(encode_shard(ShardRecord.join([record])), manifest.sampling.k)
    assert find_problem(arrays, manifest.tokenizer.vocab_size) is None
    arrays["hidden_signs"] = arrays["hidden_signs"].copy()
    arrays["hidden_signs"][-1] = 0
    found = find_problem(arrays, manifest.tokenizer.vocab_size)
    assert found == "hidden_signs holds a hole"


@pytest.mark.parametrize("kept", ["none", "narrow", "zero"])
def test_a_record_whose_signs_do_not_fit_is_refused(tmp_path: Path, kept: str) -> None:
    manifest = make_manifest(hidden=HIDDEN, samples_per_shard=1, num_samples=1)
    record = make_record(manifest, 0)
    assert record.hidden_signs is not None
    zero = np.zeros_like(record.hidden_signs)
    signs = {"none": None, "narrow": record.hidden_signs[:, :4], "zero": zero}[kept]
    writer = create_cache(tmp_path / "cache", manifest)
    with pytest.raises(CacheError, match="hidden"):
        writer.write_shard(0, [dataclasses.replace(record, hidden_signs=signs)])
    assert open_cache(tmp_path / "cache").missing_shards() == [0]


@pytest.mark.parametrize(
    "change", [{"bits": 128}, {"bits": 60}, {"block": 8}, {"width": 0}, {"unknown": 1}]
)
def test_a_manifest_with_an_impossible_state_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make_manifest(hidden={**HIDDEN, **change})


def test_the_version_follows_from_the_records() -> None:
    with pytest.raises(ValidationError, match="format_version is not 3"):
        make_manifest(hidden=HIDDEN, format_version=1)
    with pytest.raises(ValidationError, match="format_version is not 1"):
        make_manifest(format_version=3)
