"""Intervals of shares, against published ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlsi_cache.evaluation.intervals import difference_interval, wilson_interval


@pytest.mark.parametrize(
    ("num_right", "num_questions", "interval"),
    [(0, 10, (0.0, 0.2775)), (50, 100, (0.4038, 0.5962)), (10, 10, (0.7225, 1.0))],
)
def test_wilson_intervals_are_the_published_ones(
    num_right: int, num_questions: int, interval: tuple[float, float]
) -> None:
    assert wilson_interval(num_right, num_questions) == pytest.approx(interval, abs=1e-4)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_an_interval_holds_its_share_and_stays_within_zero_and_one(
    counts: tuple[int, int],
) -> None:
    low, high = wilson_interval(*counts)
    rounding = 1e-12
    assert -rounding <= low <= counts[0] / counts[1] + rounding
    assert counts[0] / counts[1] - rounding <= high <= 1 + rounding


@pytest.mark.parametrize(
    ("counts", "others", "interval"),
    [((56, 70), (48, 80), (0.0524, 0.3339)), ((9, 10), (3, 10), (0.1705, 0.8090))],
)
def test_intervals_of_a_difference_are_newcombes(
    counts: tuple[int, int], others: tuple[int, int], interval: tuple[float, float]
) -> None:
    share = counts[0] / counts[1]
    other = others[0] / others[1]
    found = difference_interval(share, wilson_interval(*counts), other, wilson_interval(*others))
    assert found == pytest.approx(interval, abs=1e-4)
    turned = difference_interval(other, wilson_interval(*others), share, wilson_interval(*counts))
    assert turned == pytest.approx((-interval[1], -interval[0]), abs=1e-4)
