"""Levels against the probabilities that they stand for."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from vlsi_cache.levels import FRACTIONS, TAILS, are_levels, find_levels, log_probs_of


@st.composite
def levels(draw: st.DrawFn) -> NDArray[np.uint8]:
    k, rows = draw(st.integers(1, 70)), draw(st.integers(0, 5))
    first = draw(hnp.arrays(np.uint8, (rows, 1), elements=st.integers(0, len(TAILS) - 2)))
    others = hnp.arrays(np.uint8, (rows, k - 1), elements=st.integers(0, len(FRACTIONS) - 1))
    return np.concatenate([first, draw(others)], 1)


@given(levels())
def test_levels_are_found_again_from_their_log_probabilities(given: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(find_levels(log_probs_of(given)), given)


@given(levels())
def test_probabilities_and_tail_are_what_the_levels_say(given: NDArray[np.uint8]) -> None:
    found = np.exp(log_probs_of(given).astype(np.float64))
    np.testing.assert_allclose(found.sum(-1), 1 - TAILS[given[:, 0]], rtol=1e-6, atol=1e-12)
    for rank in range(1, given.shape[1]):
        together = found[:, : rank + 1].sum(-1)
        np.testing.assert_allclose(
            found[:, rank], together * FRACTIONS[given[:, rank]], rtol=1e-5, atol=1e-12
        )


def test_nothing_beyond_the_likely_ones_and_nothing_in_them_have_levels() -> None:
    whole, none = np.array([[0, 40, 20]]), np.array([[len(TAILS) - 1, 40, 20]])
    assert np.exp(log_probs_of(whole).astype(float)).sum() == pytest.approx(1, abs=1e-7)
    assert np.exp(log_probs_of(none).astype(float)).sum() == 0
    assert find_levels(log_probs_of(none))[0, 0] == len(TAILS) - 1


def test_tables_fit_a_byte_and_ascend() -> None:
    for table in (TAILS, FRACTIONS):
        assert len(table) < 255
        assert (np.diff(table) > 0).all()
    assert not are_levels(np.array([[len(TAILS), 0]]))
    assert not are_levels(np.array([[0, len(FRACTIONS)]]))
    assert not are_levels(np.array([[0, -1]]))
