"""The weights, masses and shapes of sparse distributions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vlsi_cache.distribution import SparseDistribution


def from_logits(
    logits: np.ndarray, *, k: int, draws: np.ndarray | None = None
) -> SparseDistribution:
    log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    top = np.argsort(-log_p, axis=-1)[..., :k]
    ids = top if draws is None else np.concatenate([top, draws], axis=-1)
    return SparseDistribution(
        token_ids=ids.astype(np.int32),
        top_log_probs=np.take_along_axis(log_p, top, axis=-1).astype(np.float32),
        entropy=-(np.exp(log_p) * log_p).sum(-1).astype(np.float32),
        label_log_prob=log_p[..., 0].astype(np.float32),
    )


@given(
    log_probs=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 5)),
        elements=st.floats(-200, 0, width=32) | st.sampled_from([-np.inf, -65504.0]),
    ),
    m=st.integers(0, 4),
)
def test_weights_are_not_negative_and_sum_to_one_for_any_log_probabilities(
    log_probs: np.ndarray, m: int
) -> None:
    rows, k = log_probs.shape
    zero = np.zeros(rows, np.float32)
    weights = SparseDistribution(np.zeros((rows, k + m), np.int32), log_probs, zero, zero).weights()
    assert weights.dtype == np.float32
    assert weights.shape == (rows, k + m)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)


def test_top_entries_weigh_their_probability_and_draws_share_the_rest() -> None:
    log_probs = np.log(np.array([[0.5, 0.2]], np.float32))
    zero = np.zeros(1, np.float32)
    weights = SparseDistribution(np.zeros((1, 5), np.int32), log_probs, zero, zero).weights()
    np.testing.assert_allclose(weights, [[0.5, 0.2, 0.1, 0.1, 0.1]], rtol=1e-6)


def test_expectation_under_weights_is_unbiased_over_draws_from_the_tail() -> None:
    generator = np.random.default_rng(0)
    vocab_size, k, m, repeats = 50, 3, 4, 20_000
    logits = generator.normal(size=vocab_size) * 2
    probability = np.exp(logits) / np.exp(logits).sum()
    values = generator.normal(size=vocab_size)
    tail = probability.copy()
    tail[np.argsort(-probability)[:k]] = 0
    draws = generator.choice(vocab_size, size=(repeats, m), p=tail / tail.sum())
    record = from_logits(np.broadcast_to(logits, (repeats, vocab_size)), k=k, draws=draws)
    estimates = (record.weights() * values[record.token_ids]).sum(-1)
    error = estimates.std() / np.sqrt(repeats)
    assert abs(estimates.mean() - probability @ values) < 4 * error


def test_without_draws_the_top_is_renormalised() -> None:
    record = from_logits(np.random.default_rng(1).normal(size=(2, 3, 20)), k=4)
    top = np.exp(record.top_log_probs)
    np.testing.assert_allclose(record.weights(), top / top.sum(-1, keepdims=True), rtol=1e-5)


def test_captured_mass_is_the_probability_of_the_top() -> None:
    record = from_logits(np.log(np.array([[0.6, 0.3, 0.1]])), k=2)
    np.testing.assert_allclose(record.captured_mass(), [0.9], rtol=1e-6)


def test_indexing_and_concatenation_undo_one_another() -> None:
    record = from_logits(np.random.default_rng(2).normal(size=(6, 3, 20)), k=4)
    joined = SparseDistribution.concatenate([record[:2], record[2:2], record[2:]])
    assert joined.shape == record.shape == (6, 3)
    assert len(record[1]) == 3
    np.testing.assert_array_equal(joined.token_ids, record.token_ids)
    np.testing.assert_array_equal(joined.top_log_probs, record.top_log_probs)
    np.testing.assert_array_equal(joined.entropy, record.entropy)
    np.testing.assert_array_equal(joined.label_log_prob, record.label_log_prob)


def test_concatenating_records_of_different_k_is_refused() -> None:
    logits = np.zeros((1, 8))
    draw = np.full((1, 1), 7)
    with pytest.raises(ValueError, match=r"k: \[2, 3\]"):
        SparseDistribution.concatenate(
            [from_logits(logits, k=3), from_logits(logits, k=2, draws=draw)]
        )


@pytest.mark.parametrize(
    ("entries", "top", "leading"),
    [
        ((2, 3, 4), (2, 3, 5), (2, 3)),
        ((2, 3, 0), (2, 3, 0), (2, 3)),
        ((2, 3, 4), (2, 2), (2, 3)),
        ((2, 1, 4), (2, 3, 2), (2, 3)),
        ((2, 3, 4), (2, 3, 2), (2,)),
    ],
)
def test_arrays_whose_shapes_disagree_are_refused(
    entries: tuple[int, ...], top: tuple[int, ...], leading: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="disagree"):
        SparseDistribution(
            np.zeros(entries, np.int32),
            np.zeros(top, np.float32),
            np.zeros(leading, np.float32),
            np.zeros(leading, np.float32),
        )
