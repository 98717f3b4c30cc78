"""The record of a distribution: its top, its draws, its exact entropy."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlsi_cache.objectives import sparsify
from vlsi_cache.objectives.sparsify import systematic_draws


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
    record = sparsify(logits, labels, torch.rand(num_tokens, dtype=torch.float64), k=k, m=m)
    log_p = torch.log_softmax(logits, -1)
    exact = torch.log_softmax(logits.double(), -1)
    np.testing.assert_allclose(record.top_log_probs, log_p.topk(k).values, atol=1e-6)
    np.testing.assert_allclose(record.entropy, -(exact.exp() * exact).sum(-1), atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(record.label_log_prob, log_p.gather(1, labels[:, None])[:, 0])
    np.testing.assert_allclose(record.weights().sum(-1), 1.0, atol=1e-5)
    tail_mass = 1 - record.captured_mass()
    for row in range(num_tokens):
        if tail_mass[row] > 1e-6:
            assert not set(record.token_ids[row, :k]) & set(record.token_ids[row, k:])


def test_systematic_draws_are_in_proportion_and_never_touch_weightless_entries() -> None:
    weights = torch.tensor([[0.0, 0.1, 0.0, 0.6, 0.3, 0.0]])
    uniforms = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    drawn = systematic_draws(weights.expand(1000, -1), uniforms, 2)
    shares = torch.bincount(drawn.flatten(), minlength=6) / 2000
    torch.testing.assert_close(shares, weights[0], atol=1e-3, rtol=0)
