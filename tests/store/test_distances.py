"""The distance between taps, against the whole distributions and against a plain loop."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from support.caches import make_cache, make_manifest
from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.sampling.draws import coupled_draws
from vlsi_cache.store import open_cache, summarize_cache
from vlsi_cache.store.cache.figures.distances import Distances, compared_share
from vlsi_cache.store.shards import shard
from vlsi_cache.store.shards.arrays import Array
from vlsi_cache.store.shards.records import ShardRecord
from vlsi_cache.store.shards.shard import OpenShard


def record_of(distribution: SparseDistribution) -> ShardRecord:
    count = len(distribution)
    return ShardRecord(
        sample_ids=("s",),
        keys=np.full((1, 32), 7, np.uint8),
        offsets=np.array([0, count]),
        response_ids=np.zeros(count, np.int32),
        distribution=distribution,
    )


def drawn(ids: torch.Tensor) -> SparseDistribution:
    nothing = np.zeros(ids.shape[:2], np.float32)
    top = np.zeros((*ids.shape[:2], 0), np.float32)
    return SparseDistribution(ids.numpy().astype(np.int32), top, nothing, nothing)


@pytest.mark.parametrize("k", [0, 3])
def test_the_distances_of_a_cache_are_those_of_a_plain_loop(tmp_path: Path, k: int) -> None:
    cache = make_cache(tmp_path, make_manifest(sampling={"k": k, "m": 5, "seed": 0}))
    summary = summarize_cache(cache)
    total, count = np.zeros((len(summary.taps),) * 2), 0
    for record in cache:
        weights = record.distribution.weights()
        for ids, shares in zip(record.distribution.token_ids, weights, strict=True):
            count += 1
            taps = [Counter[int]() for _ in ids]
            for tap, row, values in zip(taps, ids, shares, strict=True):
                for token, share in zip(row.tolist(), values.tolist(), strict=True):
                    tap[token] += share
            for i, first in enumerate(taps):
                for j, second in enumerate(taps):
                    tokens = first.keys() | second.keys()
                    total[i, j] += sum(abs(first[t] - second[t]) for t in tokens) / 2
    found = np.array([tap.distance_to_taps for tap in summary.taps])
    np.testing.assert_allclose(found, total / count, rtol=1e-6, atol=1e-12)
    assert summary.num_tokens_compared is None
    assert all(tap.distance_errors == () for tap in summary.taps)


def test_neighbours_are_unbiased_and_others_are_no_nearer_than_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    count = 4000
    logits = torch.randn(3, 1, 40, generator=generator).expand(3, count, 40)
    taps = torch.softmax(1.5 * logits.cumsum(0), -1)
    positions, later = [], None
    for probability in taps.flip(0):
        uniforms = torch.rand(count, generator=generator, dtype=torch.float64)
        later = coupled_draws(probability, uniforms, 14, later)
        positions.insert(0, later.positions)
    distances = Distances(3, 1.0)
    distances.add(record_of(drawn(torch.stack(positions, 1))))
    truth = (taps[:, None, 0] - taps[None, :, 0]).abs().sum(-1) / 2
    error = 4 * 0.14 / count**0.5  # four standard errors: a token spreads by less than 0.14
    means = torch.tensor([distances.means(row) for row in range(3)])
    for first, second in ((0, 1), (1, 2)):
        assert abs(float(means[first, second] - truth[first, second])) < error
    assert float(means[0, 2]) > float(truth[0, 2]) - error


def test_the_errors_of_chosen_tokens_are_their_spread() -> None:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 6, (4000, 2, 8), generator=generator)
    whole, chosen = Distances(2, 1.0), Distances(2, 0.25)
    for distances in (whole, chosen):
        distances.add(record_of(drawn(ids)))
    error = chosen.errors(0, num_groups=0, num_groups_total=0)[1]
    spread = np.sqrt(whole._token_squares[0, 1] / 4000 - whole.means(0)[1] ** 2)
    assert error == pytest.approx(spread * np.sqrt(0.75 / chosen.num_tokens), rel=0.1)
    assert abs(chosen.means(0)[1] - whole.means(0)[1]) < 4 * error
    assert whole.errors(0, num_groups=0, num_groups_total=0) == ()


def test_more_taps_compare_fewer_tokens() -> None:
    assert compared_share(1000, 9, 14) == 1.0
    assert compared_share(10_000_000, 9, 14) == 2**16 / 10_000_000
    assert 0 < compared_share(10_000_000, 80, 14) < 0.002
    assert compared_share(10_000_000, 5000, 14) == 0.0


def test_figures_of_some_samples_have_errors_of_their_distances(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, make_manifest(num_samples=30, samples_per_shard=10))
    for tap in summarize_cache(cache, max_samples=12).taps:
        assert len(tap.distance_errors) == len(tap.distance_to_taps) == 3
        assert tap.standard_errors is not None
    assert summarize_cache(cache, max_samples=12).num_tokens_compared


def test_several_processes_find_the_same_figures(tmp_path: Path) -> None:
    make_cache(tmp_path, make_manifest(num_samples=20, samples_per_shard=4))
    cache = open_cache(tmp_path)
    assert cache.statistics(processes=2) == cache.statistics()


def test_parts_of_a_shard_hold_all_of_it(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, make_manifest(num_samples=9, samples_per_shard=9))
    (whole,) = cache.iter_shards()
    for size in (1, 7, 10**6):
        parts = list(cache.iter_parts(0, size))
        assert sum((part.sample_ids for part in parts), ()) == whole.sample_ids
        ids = np.concatenate([part.distribution.token_ids for part in parts])
        np.testing.assert_array_equal(ids, whole.distribution.token_ids)
        assert all(part.offsets[0] == 0 for part in parts)
    assert len(list(cache.iter_parts(0, 10**6))) == 1


def test_parts_decode_every_chunk_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, int]] = []
    read_tokens = OpenShard.read_tokens

    def noted(opened: OpenShard, first: int, stop: int) -> dict[str, Array]:
        read.append((first, stop))
        return read_tokens(opened, first, stop)

    monkeypatch.setattr(shard, "CHUNK_TOKENS", 8)
    cache = make_cache(tmp_path, make_manifest(num_samples=30, samples_per_shard=30))
    (whole,) = cache.iter_shards()
    monkeypatch.setattr(OpenShard, "read_tokens", noted)
    for size in (1, 5, 8, 20):
        read.clear()
        parts = list(cache.iter_parts(0, size))
        ids = np.concatenate([part.distribution.token_ids for part in parts])
        np.testing.assert_array_equal(ids, whole.distribution.token_ids)
        labels = np.concatenate([part.response_ids for part in parts])
        np.testing.assert_array_equal(labels, whole.response_ids)
        asked = [both for both in read if both[0] < both[1]]
        assert [first for first, _ in asked] == [0, *[stop for _, stop in asked[:-1]]]
        assert asked[-1][1] == whole.num_tokens
        assert all(first % 8 == 0 for first, _ in asked)
        assert len(asked) > 1
