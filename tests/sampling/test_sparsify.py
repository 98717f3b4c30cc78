"""The record of a distribution: its top, its draws, its exact entropy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.records import as_record
from vlsi_cache.distribution import ENTROPY_STEP, LABEL_STEP
from vlsi_cache.sampling import sparsify, systematic_draws
from vlsi_cache.sampling.sparsify import draw


@settings(deadline=None, max_examples=40)
@given(
    num_tokens=st.integers(1, 5),
    vocab=st.integers(2, 60),
    data=st.data(),
    sharpness=st.floats(0, 30),
)
def test_a_record_keeps_the_top_and_draws_from_the_rest(
    num_tokens: int, vocab: int, data: st.DataObject, sharpness: float
) -> None:
    k = data.draw(st.integers(1, vocab))
    m = data.draw(st.integers(0, vocab - k))
    logits = torch.randn(num_tokens, vocab) * sharpness
    labels = torch.randint(vocab, (num_tokens,))
    dice = torch.rand(num_tokens, dtype=torch.float64)
    record = as_record(sparsify(logits, labels, dice, k=k, m=m))
    log_p = torch.log_softmax(logits, -1)
    exact = torch.log_softmax(logits.double(), -1)
    np.testing.assert_allclose(record.top_log_probs, log_p.topk(k).values, atol=1e-6)
    entropy = -(exact.exp() * exact).sum(-1)
    np.testing.assert_allclose(record.entropy, entropy, atol=ENTROPY_STEP + 1e-4)
    label = log_p.gather(1, labels[:, None])[:, 0]
    np.testing.assert_allclose(record.label_log_prob, label, atol=LABEL_STEP + 1e-4)
    np.testing.assert_allclose(record.weights().sum(-1), 1.0, atol=1e-5)
    tail_mass = 1 - record.captured_mass()
    for row in range(num_tokens):
        if tail_mass[row] > 1e-6:
            assert not set(record.token_ids[row, :k]) & set(record.token_ids[row, k:])


def test_rounding_keeps_the_means() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.5, -1.0]]).expand(4000, -1)
    dice = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    record = as_record(sparsify(logits, torch.ones(4000).long(), dice, k=2, m=1))
    log_p = torch.log_softmax(logits[0].double(), -1)
    np.testing.assert_allclose(record.entropy.mean(), -(log_p.exp() * log_p).sum(), atol=1e-3)
    np.testing.assert_allclose(record.label_log_prob.mean(), log_p[1], atol=1e-3)
    assert set(record.entropy / ENTROPY_STEP % 1) == set(record.label_log_prob / LABEL_STEP % 1)


@pytest.mark.parametrize("uniform", [1 - 2**-53, 1 - 2**-26, 0.0])
def test_a_certain_token_stays_certain_with_any_dice(uniform: float) -> None:
    logits = torch.full((1, 300), -1e4).index_fill(1, torch.tensor([7]), 0.0)
    label, dice = torch.tensor([7]), torch.tensor([uniform], dtype=torch.float64)
    kept = [sparsify(logits, label, dice, k=1, m=2), draw(logits, label, dice, m=2, later=None)[0]]
    for record in map(as_record, kept):
        assert (record.label_log_prob.item(), record.entropy.item()) == (0.0, 0.0)
        assert record.token_ids[0, 0] == 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_uniform_of_almost_1_draws_what_has_weight(dtype: torch.dtype) -> None:
    weights = torch.rand(4, 300).masked_fill(torch.arange(300) >= 290, 0.0)
    uniforms = torch.full((4,), 1 - 2**-53, dtype=torch.float64).to(dtype)
    assert (systematic_draws(weights, uniforms, 5) < 290).all()
