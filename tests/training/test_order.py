"""The order of samples: a shuffle of blocks, shared by processes without overlap or loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlsi_cache.training.samples.order import (
    GroupOrder,
    Indices,
    Parcel,
    ProcessSlice,
    SampleOrder,
    plain_order,
    slice_batches,
)


@dataclass(frozen=True)
class Arriving:
    """Parcels as they are given, one after another."""

    given: Sequence[Sequence[Indices]]
    window: int
    num_samples: int

    def parcels(self, epoch: int) -> Iterator[Parcel]:
        for number, blocks in enumerate(self.given, start=1):
            yield Parcel(blocks, is_last=number == len(self.given))


def blocks_of(sizes: Sequence[int], start: int = 0) -> list[Indices]:
    edges = start + np.cumsum([0, *sizes])
    return [np.arange(a, b) for a, b in pairwise(edges)]


shares = st.builds(
    ProcessSlice, seed=st.integers(0, 9), batch_size=st.integers(1, 5), num_ranks=st.integers(1, 4)
)
sizes = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def all_ranks(order: SampleOrder, share: ProcessSlice, epoch: int = 0) -> list[list[list[int]]]:
    ranks = [replace(share, rank=rank) for rank in range(share.num_ranks)]
    return [list(slice_batches(order, one, epoch)) for one in ranks]


def flat(batches: Sequence[Sequence[int]]) -> list[int]:
    return [sample for batch in batches for sample in batch]


@given(sizes, shares, st.integers(1, 4), st.integers(0, 3))
def test_every_sample_goes_to_one_process_once_and_all_step_alike(
    sizes: list[int], share: ProcessSlice, window: int, epoch: int
) -> None:
    order = GroupOrder(blocks_of(sizes), window)
    ranks = all_ranks(order, share, epoch)
    assert sorted(flat([flat(batches) for batches in ranks])) == list(range(sum(sizes)))
    assert max(map(len, ranks)) == share.num_batches(order.num_samples)
    assert all(0 < len(batch) <= share.batch_size for batches in ranks for batch in batches)
    if share.batch_size > 1 and sum(sizes) >= share.num_ranks:
        assert len({len(batches) for batches in ranks}) == 1, "nobody waits for a spare"


@given(sizes, shares, st.integers(1, 4))
def test_the_same_seed_and_epoch_give_the_same_batches(
    sizes: list[int], share: ProcessSlice, window: int
) -> None:
    order = GroupOrder(blocks_of(sizes), window)
    assert all_ranks(order, share, 1) == all_ranks(order, share, 1)


def test_another_epoch_or_seed_gives_another_order() -> None:
    order = GroupOrder(blocks_of([10] * 10), 2)
    orders = {
        tuple(flat(next(iter(all_ranks(order, ProcessSlice(seed, 4), epoch)))))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9
    assert len({tuple(sorted(order)) for order in orders}) == 1


@given(sizes, shares, st.integers(1, 4))
def test_samples_stray_no_further_than_their_window(
    sizes: list[int], share: ProcessSlice, window: int
) -> None:
    """So a block's chunks are wanted during one window only, by one process but at its ends."""
    blocks = blocks_of(sizes)
    block_of = {sample: i for i, block in enumerate(blocks) for sample in block.tolist()}
    users = [0] * len(blocks)
    for batches in all_ranks(GroupOrder(blocks, window), share):
        seen = [block_of[sample] for sample in flat(batches)]
        for block in set(seen):
            users[block] += 1
            first, last = seen.index(block), len(seen) - seen[::-1].index(block)
            assert len(set(seen[first:last])) <= window
    assert sum(users) <= len(blocks) + share.num_ranks - 1


@given(st.lists(sizes, min_size=1, max_size=4), shares, st.integers(1, 3), st.integers(0, 3))
def test_parcels_follow_one_another_and_leave_their_remainder_to_the_next(
    parcels: list[list[int]], share: ProcessSlice, window: int, num_lost: int
) -> None:
    given, start = [], 0
    for sizes in parcels:
        given.append(blocks_of(sizes, start))
        start += sum(sizes)
    order = Arriving(given, window, start + num_lost)
    ranks = all_ranks(order, share)
    assert sorted(flat([flat(batches) for batches in ranks])) == list(range(start))
    assert max(map(len, ranks)) <= share.num_batches(order.num_samples)
    # nothing is used before its parcel, and all but a remainder of a parcel before the next
    seen, whole = 0, share.batch_size * share.num_ranks
    for number, blocks in enumerate(given):
        seen += sum(map(len, blocks))
        steps = seen // whole
        early = flat([flat(batches[:steps]) for batches in ranks])
        if number + 1 < len(given):
            assert max(early, default=-1) < seen
            assert len(early) == steps * whole


def test_without_a_cache_all_samples_are_shuffled() -> None:
    (batches,) = all_ranks(plain_order(1000), ProcessSlice(0, 8))
    order = np.array(flat(batches))
    assert sorted(order) == list(range(1000))
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1


def test_each_process_gets_other_samples_in_every_epoch() -> None:
    first, second = (
        [
            set(flat(batches))
            for batches in all_ranks(plain_order(1000), ProcessSlice(0, 8, 0, 4), epoch)
        ]
        for epoch in (0, 1)
    )
    for before, after in zip(first, second, strict=True):
        assert len(before & after) < 0.4 * len(before), "a quarter is what chance gives"


def test_samples_that_are_left_out_are_in_no_epoch() -> None:
    (batches,) = all_ranks(plain_order(10, [0, 3, 9]), ProcessSlice(0, 3))
    assert sorted(flat(batches)) == [1, 2, 4, 5, 6, 7, 8]
    assert plain_order(10, [0, 3, 9]).num_samples == 7


@pytest.mark.parametrize("num_samples", [1, 2, 3, 5])
def test_batches_of_one_may_run_short(num_samples: int) -> None:
    ranks = all_ranks(plain_order(num_samples), ProcessSlice(0, 1, 0, 3))
    assert sorted(map(len, ranks), reverse=True)[0] == -(-num_samples // 3)
    assert sum(map(len, ranks)) == num_samples


@given(sizes, shares, st.integers(1, 4), st.integers(0, 3))
def test_grouped_by_length_every_sample_still_goes_to_one_process_once(
    sizes: list[int], share: ProcessSlice, window: int, epoch: int
) -> None:
    order = GroupOrder(blocks_of(sizes), window)
    grouped = replace(share, lengths=np.arange(sum(sizes)) * 7 % 11)
    ranks, plain = all_ranks(order, grouped, epoch), all_ranks(order, share, epoch)
    assert sorted(flat([flat(batches) for batches in ranks])) == list(range(sum(sizes)))
    assert [list(map(len, batches)) for batches in ranks] == [
        list(map(len, batches)) for batches in plain
    ]
    assert ranks == all_ranks(order, grouped, epoch)
    for ours, theirs in zip(ranks, plain, strict=True):
        assert sorted(flat(ours)) == sorted(flat(theirs)), "the slice stays what it is"


def test_samples_of_like_length_share_batches_which_come_in_any_order() -> None:
    lengths = np.random.default_rng(0).integers(10, 1000, 2003)
    share = ProcessSlice(0, 8, lengths=lengths)
    epochs = [all_ranks(plain_order(2003), share, epoch)[0] for epoch in (0, 1)]
    for batches in epochs:
        padded = sum(len(batch) * lengths[batch].max() for batch in batches)
        assert padded < 1.03 * lengths.sum()
        longest = np.array([lengths[batch].max() for batch in batches])
        assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.15
    together = [{frozenset(pair) for b in batches for pair in pairwise(b)} for batches in epochs]
    assert len(together[0] & together[1]) < 0.15 * len(together[0]), "other company every epoch"
