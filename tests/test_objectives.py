"""The one-pass sparse divergence against plain autograd and float64; the record's unbiasedness."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlsi_cache import objectives
from vlsi_cache.models import Head, LogitTransform
from vlsi_cache.objectives import (
    SparseTargets,
    dense_divergence,
    label_targets,
    linear_cross_entropy,
    matched_divergence,
    reference_divergences,
    sparsify,
    sweep_head,
)
from vlsi_cache.objectives.sparsify import systematic_draws


def _head(
    vocab_rows: int,
    hidden_size: int,
    *,
    bias: bool = False,
    softcap: float | None = None,
    scale: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Head:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocab_rows, hidden_size, generator=generator, dtype=dtype)
    offset = torch.randn(vocab_rows, generator=generator, dtype=dtype) if bias else None
    return Head(weight, offset, LogitTransform(scale, softcap))


def _targets(num_tokens: int, num_candidates: int, entries: int, vocab: int) -> SparseTargets:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(vocab, (num_tokens, num_candidates, entries), generator=generator)
    raw = torch.rand(num_tokens, num_candidates, entries, generator=generator)
    return SparseTargets(
        ids, raw / raw.sum(-1, keepdim=True), torch.rand(num_tokens, num_candidates)
    )


def _gradient(value: Tensor, features: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(value, features)
    return gradient


@settings(deadline=None, max_examples=40)
@given(
    num_tokens=st.integers(1, 9),
    hidden_size=st.integers(1, 7),
    vocab=st.integers(2, 40),
    padding=st.integers(0, 5),
    num_candidates=st.integers(1, 4),
    entries=st.integers(1, 12),
    bias=st.booleans(),
    softcap=st.sampled_from([None, 2.0, 30.0]),
    scale=st.sampled_from([1.0, 0.0625, 3.0]),
    chunk=st.sampled_from([1, 64, 1 << 24]),
)
def test_the_sweep_gives_the_references_value_and_gradient(
    num_tokens: int,
    hidden_size: int,
    vocab: int,
    padding: int,
    num_candidates: int,
    entries: int,
    bias: bool,
    softcap: float | None,
    scale: float,
    chunk: int,
) -> None:
    head = _head(vocab + padding, hidden_size, bias=bias, softcap=softcap, scale=scale)
    targets = _targets(num_tokens, num_candidates, entries, vocab)
    features = torch.randn(num_tokens, hidden_size, dtype=torch.float64, requires_grad=True)
    matched = torch.randint(num_candidates, (num_tokens,))
    token_weights = torch.rand(num_tokens)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objectives.sweep, "CHUNK_ELEMENTS", chunk)
        sweep = sweep_head(features, head, targets, vocab)
    value = matched_divergence(sweep, matched, token_weights)
    expected = reference_divergences(features, head, targets, vocab)
    chosen = (expected.gather(1, matched[:, None])[:, 0] * token_weights).sum()
    torch.testing.assert_close(sweep.divergences, expected.float(), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(value.double(), chosen.double(), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(
        _gradient(value, features), _gradient(chosen, features), atol=2e-5, rtol=1e-5
    )


def test_a_certain_target_is_the_cross_entropy() -> None:
    head = _head(50, 8, dtype=torch.float32)
    features = torch.randn(12, 8, requires_grad=True)
    labels = torch.randint(50, (12,))
    sweep = sweep_head(features, head, label_targets(labels), 50)
    value = matched_divergence(sweep, torch.zeros_like(labels), torch.full((12,), 1 / 12))
    expected = F.cross_entropy(features @ head.weight.T, labels)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(_gradient(value, features), _gradient(expected, features))


def test_bfloat16_errs_about_as_little_as_plain_bfloat16_autograd() -> None:
    errors, plain_errors = [], []
    for seed in range(8):
        torch.manual_seed(seed)
        head = Head(_head(300, 16, seed=seed).weight.bfloat16())
        targets = _targets(64, 1, 8, 300)
        features = torch.randn(64, 16).bfloat16().requires_grad_()
        exact = features.detach().double().requires_grad_()
        truth = _gradient(
            reference_divergences(exact, Head(head.weight.double()), targets, 300).mean(), exact
        )
        plain = reference_divergences(features, head, targets, 300).mean()
        sweep = sweep_head(features, head, targets, 300)
        value = matched_divergence(sweep, torch.zeros(64).long(), torch.full((64,), 1 / 64))
        errors.append((_gradient(value, features).double() - truth).norm().item())
        plain_errors.append((_gradient(plain, features).double() - truth).norm().item())
    assert sum(errors) <= 1.1 * sum(plain_errors)


def test_extreme_logits_stay_finite() -> None:
    head = Head(torch.eye(6) * 1e4)
    features = torch.eye(6)[:3].requires_grad_()
    sweep = sweep_head(features, head, label_targets(torch.tensor([0, 1, 5])), 6)
    value = matched_divergence(sweep, torch.zeros(3).long(), torch.ones(3))
    assert torch.isfinite(value)
    assert torch.isfinite(_gradient(value, features)).all()


def test_linear_cross_entropy_reaches_head_and_features() -> None:
    weight = torch.randn(30, 6, requires_grad=True)
    features = torch.randn(9, 6, requires_grad=True)
    labels = torch.randint(20, (9,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objectives.sweep, "CHUNK_ELEMENTS", 64)
        value = linear_cross_entropy(features, Head(weight), labels, 20)
    expected = F.cross_entropy(features @ weight[:20].T, labels, reduction="sum")
    torch.testing.assert_close(value, expected)
    for ours, plain in zip(
        torch.autograd.grad(value, [features, weight]),
        torch.autograd.grad(expected, [features, weight]),
        strict=True,
    ):
        torch.testing.assert_close(ours, plain)


def test_dense_divergence_is_kl_from_the_target() -> None:
    head, target_head = _head(30, 6), _head(33, 4, seed=2)
    features = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    target = torch.randn(7, 4, dtype=torch.float64)
    value = dense_divergence(features, head, target, target_head, 25)
    p = torch.softmax(target @ target_head.weight[:25].T, -1)
    q = torch.log_softmax(features @ head.weight[:25].T, -1)
    expected = (p * (p.log() - q)).sum(-1)
    torch.testing.assert_close(value.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        _gradient(value.sum(), features), _gradient(expected.sum(), features), atol=1e-5, rtol=1e-5
    )


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


def test_the_drawn_tail_is_unbiased_in_value_and_gradient() -> None:
    """The mean over many records converges on the full divergence; top-k renormalised does not."""
    torch.manual_seed(3)
    vocab, num_draws = 40, 4000
    teacher = torch.randn(1, vocab) * 1.5
    head = _head(vocab, 5, dtype=torch.float32)
    features = torch.randn(1, 5, requires_grad=True)
    p = torch.softmax(teacher, -1)
    log_q = torch.log_softmax(features @ head.weight.T, -1)
    full = (p * (p.log() - log_q)).sum()
    full_gradient = _gradient(full, features)
    record = sparsify(
        teacher.expand(num_draws, -1),
        torch.zeros(num_draws).long(),
        torch.rand(num_draws, dtype=torch.float64),
        k=2,
        m=3,
    )
    targets = SparseTargets(
        torch.from_numpy(record.token_ids).long()[:, None],
        torch.from_numpy(record.weights())[:, None],
        torch.from_numpy(record.entropy)[:, None],
    )
    many = features.detach().expand(num_draws, -1).clone().requires_grad_()
    sweep = sweep_head(many, head, targets, vocab)
    values = sweep.divergences[:, 0]
    total = matched_divergence(sweep, torch.zeros(num_draws).long(), torch.ones(num_draws))
    gradients = _gradient(total, many)
    error = values.std() / num_draws**0.5
    assert abs(values.mean().item() - full.item()) < 5 * error
    gradient_error = gradients.std(0) / num_draws**0.5
    assert (gradients.mean(0) - full_gradient[0]).abs().max() < 5 * gradient_error.max()

    truncated = sparsify(teacher, torch.zeros(1).long(), torch.rand(1).double(), k=5, m=0)
    biased = reference_divergences(
        features,
        head,
        SparseTargets(
            torch.from_numpy(truncated.token_ids).long()[:, None],
            torch.from_numpy(truncated.weights())[:, None],
            torch.from_numpy(truncated.entropy)[:, None],
        ),
        vocab,
    )
    bias = (_gradient(biased.sum(), features)[0] - full_gradient[0]).abs().max()
    assert bias > 20 * gradient_error.max()


def test_systematic_draws_are_in_proportion_and_never_touch_weightless_entries() -> None:
    weights = torch.tensor([[0.0, 0.1, 0.0, 0.6, 0.3, 0.0]])
    uniforms = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    drawn = systematic_draws(weights.expand(1000, -1), uniforms, 2)
    shares = torch.bincount(drawn.flatten(), minlength=6) / 2000
    torch.testing.assert_close(shares, weights[0], atol=1e-3, rtol=0)
