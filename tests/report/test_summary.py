from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from support.archives import chunk_of, read_entries, shard_file, write_entries
from support.caches import make_cache, make_manifest, make_record
from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.errors import CacheError
from vlsi_cache.report import CacheSummary, summarize_cache


def test_statistics_are_means_over_all_response_tokens(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    records = [make_record(cache.manifest, index) for index in range(len(cache))]
    joined = SparseDistribution.concatenate([record.distribution for record in records])
    labels = np.concatenate([record.response_ids for record in records])[:, None]
    top = joined.token_ids[..., 0]
    summary = summarize_cache(cache)
    assert [tap.tap for tap in summary.taps] == [2, 6, -1]
    for name, values in {
        "entropy_nats": joined.entropy,
        "captured_mass": joined.captured_mass(),
        "label_log_prob_nats": joined.label_log_prob,
        "agreement_with_final": top == top[:, -1:],
        "agreement_with_label": top == labels,
        "label_in_record": (joined.token_ids == labels[..., None]).any(-1),
    }.items():
        found = [getattr(tap, name) for tap in summary.taps]
        # the made-up records' nats are rounded when they are stored
        nearly = 0.1 if name.endswith("nats") else 1e-6
        np.testing.assert_allclose(found, values.mean(0), rtol=1e-3, atol=nearly, err_msg=name)


def test_draws_alone_have_no_mass_and_their_top_is_the_id_drawn_most_often(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, make_manifest(k=0, m=12))
    summary = summarize_cache(cache)
    assert {tap.captured_mass for tap in summary.taps} == {None}
    records = [make_record(cache.manifest, index) for index in range(len(cache))]
    hits = []
    for record in records:
        for ids, label in zip(
            record.distribution.token_ids[:, -1], record.response_ids, strict=True
        ):
            values, counts = np.unique(ids, return_counts=True)
            hits.append(values[counts.argmax()] == label)
    assert summary.taps[-1].agreement_with_label == pytest.approx(np.mean(hits))


def test_sizes_are_of_the_whole_cache_on_disk(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    summary = summarize_cache(cache)
    size = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    num_tokens = sum(len(record.response_ids) for record in cache)
    assert summary.bytes_total == size
    assert summary.num_tokens == num_tokens == cache.num_tokens
    assert summary.bytes_per_token_tap == size / (num_tokens * 3)
    # per tap: 8 int32 ids, 4 float16 values, 2 codes; once per token: its int32 id
    assert summary.compression_ratio == num_tokens * (3 * (8 * 4 + 4 * 2 + 2) + 4) / size
    assert summary.dense_ratio == num_tokens * 3 * 500 * 2 / size


def test_an_incomplete_cache_is_summarized_from_its_published_shards(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, shards=[0, 2])
    summary = summarize_cache(cache)
    assert not summary.complete
    assert (summary.num_shards_present, summary.num_shards) == (2, 3)
    assert (summary.num_samples, summary.num_samples_total) == (3, 5)
    assert summary.num_tokens == sum(len(cache[index].response_ids) for index in (0, 1, 4))


def test_a_cache_without_shards_has_no_means(tmp_path: Path) -> None:
    summary = summarize_cache(make_cache(tmp_path, shards=[]))
    assert summary.taps == ()
    assert summary.num_tokens == 0
    assert summary.bytes_per_token_tap is None
    assert summary.compression_ratio is None
    assert summary.dense_ratio is None


def test_a_damaged_shard_is_an_error_and_not_a_statistic(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    entries = read_entries(shard_file(tmp_path, 1))
    del entries[chunk_of(entries, "entropy")]
    write_entries(shard_file(tmp_path, 1), entries)
    with pytest.raises(CacheError, match=r"00001\.zarr"):
        summarize_cache(cache)


def test_json_holds_the_settings_and_reads_back_equal(tmp_path: Path) -> None:
    summary = summarize_cache(make_cache(tmp_path))
    text = summary.model_dump_json()
    assert CacheSummary.model_validate_json(text) == summary
    tree = json.loads(text)
    assert tree["sampling"] == {"k": 4, "m": 4, "seed": 0}
    assert tree["teacher"]["model_type"] == "qwen2_vl"
    assert tree["tokenizer"]["vocab_size"] == 500
    assert tree["complete"] is True


def test_one_tap_alone_agrees_with_itself(tmp_path: Path) -> None:
    summary = summarize_cache(make_cache(tmp_path, make_manifest(taps=(-1,), m=0)))
    assert [tap.agreement_with_final for tap in summary.taps] == [1.0]
