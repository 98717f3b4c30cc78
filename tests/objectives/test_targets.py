"""A record as targets, with three readings of the tail."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from support.heads import gradient_of, make_head
from support.records import as_record
from vlsi_cache.distribution import ENTROPY_STEP, SparseDistribution
from vlsi_cache.objectives import (
    Divergence,
    SparseTargets,
    Tail,
    candidate_divergences,
    sparse_targets,
)
from vlsi_cache.sampling import sparsify

VOCAB = 40


def _records(logits: torch.Tensor, count: int, *, k: int = 2, m: int = 3) -> SparseDistribution:
    """The record of one distribution, drawn ``count`` times, as ``[count, 1]``."""
    dice = torch.rand(count, dtype=torch.float64)
    kept = sparsify(logits.expand(count, -1), torch.zeros(count).long(), dice, k=k, m=m)
    return as_record(kept)[:, None]


def _estimates(
    logits: torch.Tensor, features: torch.Tensor, tail: Tail, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Divergences ``[count]`` and gradients ``[count, D]`` under many draws of the record."""
    torch.manual_seed(3)
    many = features.detach().expand(count, -1).clone().requires_grad_()
    targets = sparse_targets(_records(logits, count), tail)
    head = make_head(VOCAB, 5, dtype=torch.float32)
    found = candidate_divergences(many, head, targets, Divergence("forward", tail))
    value = found.matched(torch.zeros(count).long())
    return value.detach(), gradient_of(value.sum(), many)


def test_drawn_tails_are_unbiased_and_the_others_are_not() -> None:
    """The mean over many records converges on the full divergence, in value and gradient."""
    torch.manual_seed(3)
    logits, features = torch.randn(1, VOCAB) * 1.5, torch.randn(1, 5, requires_grad=True)
    p = torch.softmax(logits, -1)
    head = make_head(VOCAB, 5, dtype=torch.float32)
    log_q = torch.log_softmax(features @ head.weight.T, -1)
    full = (p * (p.log() - log_q)).sum()
    full_gradient = gradient_of(full, features)[0]
    values, gradients = _estimates(logits, features, "sample", 4000)
    error = values.std() / len(values) ** 0.5
    gradient_error = (gradients.std(0) / len(values) ** 0.5).norm()
    assert abs(values.mean() - full) < 5 * error
    assert (gradients.mean(0) - full_gradient).norm() < 5 * gradient_error
    # these tails read no draws, so one record is enough
    bucket, bucket_gradient = _estimates(logits, features, "bucket", 1)
    assert bucket.item() < full.item() - 20 * error, "a divergence of bins is a lower bound"
    assert (bucket_gradient[0] - full_gradient).norm() > 20 * gradient_error
    _, scaled_gradient = _estimates(logits, features, "renormalize", 1)
    assert (scaled_gradient[0] - full_gradient).norm() > 20 * gradient_error


def test_each_tail_has_its_own_weights_and_entropy() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.2, 0.1, 0.1, 0.1]]))
    dice = torch.tensor([0.5], dtype=torch.float64)
    record = as_record(sparsify(logits, torch.zeros(1).long(), dice, k=2, m=2))[:, None]

    def read(tail: Tail) -> SparseTargets:
        return sparse_targets(record, tail)

    torch.testing.assert_close(read("sample").weights, torch.tensor([[[0.5, 0.2, 0.15, 0.15]]]))
    torch.testing.assert_close(read("bucket").weights, torch.tensor([[[0.5, 0.2]]]))
    torch.testing.assert_close(read("renormalize").weights, torch.tensor([[[5 / 7, 2 / 7]]]))
    for tail, bins in {
        "sample": [0.5, 0.2, 0.1, 0.1, 0.1],
        "bucket": [0.5, 0.2, 0.3],
        "renormalize": [5 / 7, 2 / 7],
    }.items():
        expected = -sum(p * np.log(p) for p in bins)
        found = read(tail).entropy.item()  # type: ignore[arg-type]
        assert found == pytest.approx(expected, rel=1e-5, abs=ENTROPY_STEP * (tail == "sample"))


def test_likely_tokens_without_draws_have_their_own_entropy() -> None:
    """With that of the whole distribution, a divergence could fall below 0."""
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(0))
    record = _records(logits, 1, k=4, m=0)
    found, expected = sparse_targets(record, "sample"), sparse_targets(record, "renormalize")
    torch.testing.assert_close(found, expected)
    p = found.weights[0, 0].double()
    assert found.entropy.item() == pytest.approx(-(p * p.log()).sum().item(), rel=1e-6)
    log_q = torch.full((1, 1, 4), -float(np.log(4)))  # no student is nearer than these tokens
    assert Divergence("forward", "sample")(log_q, found.weights, found.entropy).item() > 0


def test_draws_alone_have_no_other_reading() -> None:
    torch.manual_seed(0)
    record = _records(torch.randn(1, VOCAB), 3, k=1, m=4)
    alone = dataclasses.replace(
        record, token_ids=record.token_ids[..., 1:], top_log_probs=record.top_log_probs[..., 1:]
    )
    torch.testing.assert_close(sparse_targets(alone, "sample").weights, torch.full((3, 1, 4), 0.25))
    with pytest.raises(ValueError, match="bucket needs records with k"):
        sparse_targets(alone, "bucket")


def test_a_top_that_rounding_puts_above_1_is_scaled() -> None:
    record = SparseDistribution(
        token_ids=np.zeros((1, 1, 2), np.int32),
        top_log_probs=np.log(np.array([[[0.9, 0.1002]]], np.float32)),
        entropy=np.zeros((1, 1), np.float32),
        label_log_prob=np.zeros((1, 1), np.float32),
    )
    torch.testing.assert_close(
        sparse_targets(record, "renormalize").weights.sum(-1), torch.ones(1, 1)
    )
    # the tail keeps what rounding may have hidden
    (mass,) = sparse_targets(record, "bucket").weights.sum(-1)
    assert 0.9995 < mass.item() < 1


def test_candidates_are_sliced_and_matched_token_by_token() -> None:
    torch.manual_seed(0)
    ids = torch.randint(9, (4, 3, 2))
    targets = SparseTargets(ids, torch.rand(4, 3, 2), torch.rand(4, 3))
    assert torch.equal(targets.candidate(-1).token_ids, ids[:, 2:])
    assert torch.equal(targets.candidate(0).entropy, targets.entropy[:, :1])
    tap = torch.tensor([2, 0, 1, 1])
    for row, matched in enumerate(targets.matched(tap).token_ids):
        assert torch.equal(matched[0], ids[row, tap[row]])
