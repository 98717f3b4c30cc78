from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from support.archives import chunk_of, read_entries, shard_file, write_entries
from support.caches import make_cache, make_manifest, make_record, write_part
from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.errors import CacheError
from vlsi_cache.report import CacheSummary, summarize_cache
from vlsi_cache.store import Cache, SampleRecord, ShardRecord, create_cache, open_cache
from vlsi_cache.store.cache.figures.statistics import choose_groups, choose_samples
from vlsi_cache.store.cache.figures.tally import Tally


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


def stored(cache: Cache) -> tuple[list[SampleRecord], SparseDistribution]:
    """The records as they are read back, and all their tokens together."""
    records = list(cache)
    return records, SparseDistribution.concatenate([record.distribution for record in records])


LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


def test_quantiles_are_those_of_the_stored_values(tmp_path: Path) -> None:
    manifest = make_manifest(num_samples=40, samples_per_shard=15)
    cache = make_cache(tmp_path, manifest)
    records, joined = stored(cache)
    top = [record.distribution.most_likely()[0] for record in records]
    agreements = np.stack([(ids == ids[:, -1:]).mean(0) for ids in top])
    for row, tap in enumerate(summarize_cache(cache).taps):
        for found, values, tolerance in (
            (tap.entropy_quantiles, joined.entropy[:, row], 0),
            (tap.label_log_prob_quantiles, joined.label_log_prob[:, row], 0),
            (tap.agreement_quantiles, agreements[:, row], 0.0005),
        ):
            wanted = np.quantile(values, LEVELS, method="inverted_cdf")
            assert found is not None
            np.testing.assert_allclose(
                list(found.model_dump().values()), wanted, rtol=0, atol=tolerance
            )


@pytest.mark.parametrize("k", [0, 4])
def test_the_agreement_of_two_taps_is_the_share_of_tokens_with_one_top(
    tmp_path: Path, k: int
) -> None:
    cache = make_cache(tmp_path, make_manifest(k=k, m=7))
    top = stored(cache)[1].most_likely()[0]
    summary = summarize_cache(cache)
    for row, tap in enumerate(summary.taps):
        assert tap.agreement_with_taps == pytest.approx((top == top[:, [row]]).mean(0))
        assert tap.agreement_with_taps[-1] == pytest.approx(tap.agreement_with_final)


def test_lengths_are_of_the_samples_with_tokens(tmp_path: Path) -> None:
    manifest = make_manifest(num_samples=60, samples_per_shard=60)
    records = [make_record(manifest, index, num_tokens=index * 3) for index in range(60)]
    create_cache(tmp_path, manifest).write_shard(0, records)
    found = summarize_cache(open_cache(tmp_path)).lengths
    assert found is not None
    counts = np.arange(1, 60) * 3
    assert (found.shortest, found.longest, found.mean) == (3, 177, counts.mean())
    wanted = np.quantile(counts, LEVELS, method="inverted_cdf")
    assert list(found.quantiles.model_dump().values()) == wanted.tolist()
    assert len(found.bins) <= 24
    assert sum(bin_.num_samples for bin_ in found.bins) == 59
    for before, after in itertools.pairwise(found.bins):
        assert after.first == before.last + 1
    for bin_ in found.bins:
        inside = (counts >= bin_.first) & (counts <= bin_.last)
        assert bin_.num_samples == inside.sum()


def test_the_most_and_the_least_certain_samples_are_those_of_the_outputs_entropy(
    tmp_path: Path,
) -> None:
    cache = make_cache(tmp_path, make_manifest(num_samples=30, samples_per_shard=7))
    records, _ = stored(cache)
    means = np.array(
        [record.distribution.entropy[:, -1].astype(float).mean() for record in records]
    )
    ordered = [records[index] for index in np.argsort(means, kind="stable")]
    summary = summarize_cache(cache)
    names = [record.sample_id for record in ordered]
    assert [figures.sample_id for figures in summary.most_certain] == names[:8]
    # among equals, the first comes first
    names = [f"sample-{index}" for index in np.argsort(-means, kind="stable")]
    assert [figures.sample_id for figures in summary.least_certain] == names[:8]
    first, record = summary.most_certain[0], ordered[0]
    assert first.key == record.key
    assert first.num_tokens == len(record.response_ids)
    assert first.entropy_nats == pytest.approx(record.distribution.entropy[:, -1].mean())
    assert first.label_log_prob_nats == pytest.approx(
        record.distribution.label_log_prob[:, -1].mean()
    )
    right = record.distribution.token_ids[:, -1, 0] == record.response_ids
    assert first.agreement_with_label == pytest.approx(right.mean())


def test_the_bytes_of_the_arrays_are_those_of_the_files(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    summary = summarize_cache(cache)
    assert sum(summary.bytes_by_array.values()) == summary.bytes_total
    assert list(summary.bytes_by_array)[-1] == "other"
    sizes: Counter[str] = Counter()
    for shard in range(3):
        for name, content in read_entries(shard_file(tmp_path, shard)).items():
            sizes[name.partition("/")[0]] += len(content)
    del sizes["zarr.json"]
    assert {**summary.bytes_by_array, "other": 0} == {**sizes, "other": 0}


def test_some_samples_give_means_with_the_standard_errors_of_a_ratio(tmp_path: Path) -> None:
    manifest = make_manifest(num_samples=50, samples_per_shard=20)
    cache = make_cache(tmp_path, manifest, shards=[0, 2])
    summary = summarize_cache(cache, max_samples=11)
    chosen = choose_samples(manifest, [1], 11)
    assert len(set(chosen)) == 11
    assert set(chosen) <= {*range(20), *range(40, 50)}
    records = [cache[index] for index in chosen]
    counts = np.array([len(record.response_ids) for record in records])
    assert (summary.num_samples, summary.num_samples_read) == (30, 11)
    assert (summary.num_tokens, summary.num_tokens_read) == (cache.num_tokens, counts.sum())
    assert summary.bytes_total == cache.size_bytes()
    assert summary.missing_shards == (1,)
    sums = np.stack([record.distribution.entropy.sum(0) for record in records])
    means = sums.sum(0) / counts.sum()
    residuals = sums - means * counts[:, None]
    variances = (1 - 11 / 30) * 11 / 10 * (residuals**2).sum(0) / counts.sum() ** 2
    for row, tap in enumerate(summary.taps):
        assert tap.entropy_nats == pytest.approx(means[row])
        assert tap.standard_errors is not None
        assert tap.standard_errors.entropy_nats == pytest.approx(variances[row] ** 0.5)
    assert summary.taps[-1].standard_errors is not None
    assert summary.taps[-1].standard_errors.agreement_with_final == 0
    assert summarize_cache(cache, max_samples=11) == summary
    assert CacheSummary.model_validate_json(summary.model_dump_json()) == summary


@pytest.mark.parametrize("size", [1, 4])
def test_standard_errors_are_the_spread_of_the_means(tmp_path: Path, size: int) -> None:
    """Over many choices, the means spread as the errors say."""
    manifest = make_manifest(num_samples=160, samples_per_shard=160)
    cache = make_cache(tmp_path, manifest)
    records = list(cache)
    generator = np.random.default_rng(1)
    means, errors = [], []
    for _ in range(400):
        tally = Tally(3)
        for group in generator.choice(160 // size, 25, replace=False):
            tally.add(ShardRecord.join(records[group * size : (group + 1) * size]))
        means.append(tally.mean("entropy_nats", 2))
        errors.append(tally.standard_error("entropy_nats", 2, 160 // size))
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.12)
    assert np.mean(means) == pytest.approx(
        summarize_cache(cache).taps[2].entropy_nats, abs=3 * np.std(means) / 20
    )


def test_many_samples_are_chosen_in_groups_of_neighbours(tmp_path: Path) -> None:
    manifest = make_manifest(num_samples=50, samples_per_shard=20)
    groups = choose_groups(manifest, [1], 12, 4)
    assert len(groups) == 3
    assert groups == sorted(groups)
    published = [*range(20), *range(40, 50)]
    for group in groups:
        first = published.index(group[0])
        assert first % 4 == 0
        assert group == published[first : first + 4]
    assert len(choose_groups(manifest, [1], 100, 4)) == 8  # the last one has two samples
    assert choose_groups(manifest, [0, 1, 2], 100, 4) == []


def test_a_sampled_summary_takes_at_most_so_many_samples(tmp_path: Path) -> None:
    manifest = make_manifest(num_samples=400, samples_per_shard=400, taps=(-1,))
    cache = make_cache(tmp_path, manifest)
    summary = summarize_cache(cache, max_samples=200)
    assert summary.num_samples_read in (198, 199, 200)  # groups of three
    tap, whole = summary.taps[0], summarize_cache(cache).taps[0]
    assert tap.standard_errors is not None
    assert abs(tap.entropy_nats - whole.entropy_nats) < 4 * tap.standard_errors.entropy_nats


def test_as_many_samples_as_there_are_give_no_errors(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    assert summarize_cache(cache, max_samples=5) == summarize_cache(cache)
    with pytest.raises(ValueError, match="max_samples is 1"):
        summarize_cache(cache, max_samples=1)


def test_some_samples_of_a_cache_name_all_its_failures(tmp_path: Path) -> None:
    path = write_part(tmp_path / "part", range(8))
    summary = summarize_cache(open_cache(path), max_samples=3)
    assert summary.failures == {"sample-6": "image is broken"}


def test_a_report_of_before_is_still_read(tmp_path: Path) -> None:
    report = summarize_cache(make_cache(tmp_path)).model_dump()
    for name in ("bytes_by_array", "lengths", "most_certain", "least_certain"):
        del report[name]
    for tap in report["taps"]:
        for name in ("entropy_quantiles", "agreement_with_taps", "standard_errors"):
            del tap[name]
    assert CacheSummary.model_validate(report).lengths is None


def test_a_mean_of_nothing_is_never_below_zero(tmp_path: Path) -> None:
    manifest = make_manifest(num_samples=1, samples_per_shard=1)
    record = make_record(manifest, 0)
    sure = np.zeros_like(record.distribution.label_log_prob)
    distribution = dataclasses.replace(record.distribution, label_log_prob=-sure)
    writer = create_cache(tmp_path, manifest)
    writer.write_shard(0, [dataclasses.replace(record, distribution=distribution)])
    text = summarize_cache(open_cache(tmp_path)).model_dump_json()
    assert '"label_log_prob_nats":0.0' in text
    assert ":-0.0," not in text
