"""One pass over the vocabulary against plain autograd in float64, shape by shape."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from support.heads import exactly, gradient_of, make_bins, make_head, make_targets, wide
from vlsi_cache.models import Head
from vlsi_cache.objectives import (
    FORWARD,
    CandidateDivergences,
    Divergence,
    Kind,
    SparseTargets,
    candidate_divergences,
    label_targets,
    lookup,
    reference_divergences,
    sweep,
    tiles,
)

TILES = [(1, 1), (2, 3), (3, 64), (1024, 2048)]
DIVERGENCES = [Divergence(kind, "bucket") for kind in get_args(Kind)] + [
    Divergence("skewed", "bucket", skew=0.9)
]


DTYPES = [torch.float32, torch.float64]


def _agree(
    found: CandidateDivergences,
    features: Tensor,
    exact: Tensor,
    expected: Tensor,
    gradient_atol: float = 2e-5,
) -> None:
    """Values of all candidates, and gradients of a matched and of a shared loss.

    The expected values are in float64, from the ``exact`` features.
    """
    num_tokens, num_candidates = expected.shape
    torch.testing.assert_close(found.values.double(), expected.detach(), atol=2e-5, rtol=2e-5)
    matched = torch.randint(num_candidates, (num_tokens,))
    token_weights = torch.rand(num_tokens, dtype=torch.float64)
    shares = torch.rand(num_tokens, num_candidates, dtype=torch.float64)
    for ours, plain in [
        (found.matched(matched), expected.gather(1, matched[:, None])[:, 0]),
        (found.expected(shares), (expected * shares).sum(-1)),
        (found.expected(shares[0] if num_tokens else shares), None),
    ]:
        if plain is None:
            plain = (expected * (shares[0] if num_tokens else shares)).sum(-1)
        torch.testing.assert_close(ours.double(), plain, atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(
            gradient_of((ours * token_weights).sum(), features).double(),
            torch.autograd.grad((plain * token_weights).sum(), exact, retain_graph=True)[0],
            atol=gradient_atol,
            rtol=2e-5,
        )


@settings(deadline=None, max_examples=60)
@given(
    num_tokens=st.integers(0, 9),
    hidden_size=st.integers(1, 7),
    vocab=st.integers(2, 40),
    padding=st.integers(0, 5),
    num_candidates=st.integers(1, 4),
    entries=st.integers(1, 12),
    bias=st.booleans(),
    softcap=st.sampled_from([None, 2.0, 30.0]),
    scale=st.sampled_from([1.0, 0.0625, 3.0]),
    tile=st.sampled_from(TILES),
    kind_of_lookup=st.sampled_from([lookup.SortedLookup, lookup.MaskedLookup]),
    dtype=st.sampled_from(DTYPES),
)
@example(1, 1, 2, 0, 1, 1, False, None, 1.0, (1024, 2048), lookup.SortedLookup, torch.float32)
def test_drawn_targets_have_the_references_value_and_gradient(
    num_tokens: int,
    hidden_size: int,
    vocab: int,
    padding: int,
    num_candidates: int,
    entries: int,
    bias: bool,
    softcap: float | None,
    scale: float,
    tile: tuple[int, int],
    kind_of_lookup: type[lookup.Lookup],
    dtype: torch.dtype,
) -> None:
    padded = make_head(
        vocab + padding, hidden_size, bias=bias, softcap=softcap, scale=scale, dtype=dtype
    )
    head = padded.real_rows(vocab)
    targets = make_targets(num_tokens, num_candidates, entries, vocab)
    features = torch.randn(num_tokens, hidden_size, dtype=dtype, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_CPU_TILE", tile)
        patch.setattr(sweep, "lookup_for", lambda _: kind_of_lookup)
        found = candidate_divergences(features, head, targets)
    exact = exactly(features)
    _agree(found, features, exact, reference_divergences(exact, wide(head), targets))


@settings(deadline=None, max_examples=60)
@given(
    divergence=st.sampled_from(DIVERGENCES),
    num_tokens=st.integers(1, 6),
    vocab=st.integers(3, 30),
    softcap=st.sampled_from([None, 2.0]),
    tile=st.sampled_from(TILES),
    data=st.data(),
)
def test_binned_targets_have_the_references_value_and_gradient(
    divergence: Divergence,
    num_tokens: int,
    vocab: int,
    softcap: float | None,
    tile: tuple[int, int],
    data: st.DataObject,
) -> None:
    head = make_head(vocab + 2, 5, softcap=softcap).real_rows(vocab)
    targets = make_bins(num_tokens, 3, data.draw(st.integers(1, vocab - 1)), vocab)
    features = torch.randn(num_tokens, 5, dtype=torch.float64, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_CPU_TILE", tile)
        found = candidate_divergences(features, head, targets, divergence)
    expected = reference_divergences(features, head, targets, divergence)
    _agree(found, features, features, expected)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda divergence: divergence.kind)
def test_a_divergence_of_bins_vanishes_only_where_the_student_agrees(
    divergence: Divergence,
) -> None:
    head = Head(torch.eye(8))
    log_p = torch.log_softmax(torch.linspace(-2, 2, 8).roll(3), -1).repeat(4, 1)
    ids = torch.tensor([0, 1, 6, 7]).view(4, 1, 1)
    weights = log_p.exp().gather(1, ids[:, 0])[:, None]
    rest = 1 - weights
    entropy = -(torch.xlogy(weights, weights) + torch.xlogy(rest, rest))[..., 0]
    targets = SparseTargets(ids, weights, entropy)
    same = candidate_divergences(log_p, head, targets, divergence).values
    torch.testing.assert_close(same, torch.zeros(4, 1), atol=1e-6, rtol=0)
    other = candidate_divergences(-3 * log_p, head, targets, divergence).values
    assert (other > 1e-5).all()


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda divergence: divergence.kind)
def test_bins_of_the_whole_vocabulary_have_no_tail(divergence: Divergence) -> None:
    head = make_head(7, 4)
    targets = make_bins(5, 2, 7, 7, tail=0.0)
    features = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    found = candidate_divergences(features, head, targets, divergence)
    # as bins, plain autograd has p log q of a tail that is 0 but for rounding, and so infinity
    plain = FORWARD if divergence.kind == "forward" else divergence
    expected = reference_divergences(features, head, targets, plain)
    torch.testing.assert_close(found.values.double(), expected, atol=1e-5, rtol=1e-3)
    value = found.matched(torch.zeros(5).long()).sum()
    assert torch.isfinite(gradient_of(value, features)).all()


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda divergence: divergence.kind)
def test_bins_of_float32_are_exact_while_the_students_tail_is_not_tiny(
    divergence: Divergence,
) -> None:
    head = make_head(60, 5, dtype=torch.float32)
    targets = make_bins(40, 2, 6, 60)
    features = (0.3 * torch.randn(40, 5)).requires_grad_()  # a tail of half the mass and more
    found = candidate_divergences(features, head, targets, divergence)
    exact = exactly(features)
    expected = reference_divergences(exact, wide(head), targets, divergence)
    _agree(found, features, exact, expected)


def test_every_token_of_the_vocabulary_as_an_entry_is_the_full_divergence() -> None:
    head = make_head(11, 4, dtype=torch.float32)
    features = torch.randn(3, 4, requires_grad=True)
    p = torch.softmax(torch.randn(3, 11) * 2, -1)
    entropy = -(p * p.log()).sum(-1, keepdim=True)
    ids = torch.arange(11).expand(3, 1, 11)
    found = candidate_divergences(features, head, SparseTargets(ids, p[:, None], entropy))
    log_q = torch.log_softmax(features @ head.weight.T, -1)
    full = F.kl_div(log_q, p, reduction="none").sum(-1)
    value = found.matched(torch.zeros(3).long())
    torch.testing.assert_close(value, full)
    torch.testing.assert_close(
        gradient_of(value.sum(), features), gradient_of(full.sum(), features)
    )


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda divergence: divergence.kind)
def test_an_empty_tail_gives_no_bad_number(divergence: Divergence) -> None:
    head = make_head(9, 4, dtype=torch.float32)
    targets = make_bins(5, 2, 3, 9, tail=0.0)
    features = (torch.randn(5, 4) * 30).requires_grad_()  # nearly all of q is on few tokens
    found = candidate_divergences(features, head, targets, divergence)
    value = found.matched(torch.ones(5).long())
    assert torch.isfinite(found.values).all()
    assert torch.isfinite(gradient_of(value.sum(), features)).all()


def test_tokens_that_weigh_nothing_leave_no_gradient() -> None:
    head = make_head(20, 6, dtype=torch.float32)
    features = torch.randn(4, 6, requires_grad=True)
    found = candidate_divergences(features, head, make_targets(4, 2, 5, 20))
    value = (found.matched(torch.zeros(4).long()) * torch.tensor([0.0, 1.0, 0.0, 0.0])).sum()
    gradient = gradient_of(value, features)
    assert (gradient[[0, 2, 3]] == 0).all()
    assert (gradient[1] != 0).any()


def test_a_certain_target_is_the_cross_entropy() -> None:
    head = make_head(50, 8, dtype=torch.float32)
    features = torch.randn(12, 8, requires_grad=True)
    labels = torch.randint(50, (12,))
    found = candidate_divergences(features, head, label_targets(labels))
    value = found.matched(torch.zeros_like(labels)).mean()
    expected = F.cross_entropy(features @ head.weight.T, labels)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient_of(value, features), gradient_of(expected, features))


@pytest.mark.parametrize("scale", [1.0, -1.0])
@pytest.mark.parametrize("tile", TILES)
def test_extreme_logits_have_the_references_value_and_gradient(
    scale: float, tile: tuple[int, int]
) -> None:
    head = Head(torch.eye(6) * 1e4 * scale)
    features = torch.eye(6)[:3].requires_grad_()
    targets = label_targets(torch.tensor([0, 1, 5]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_CPU_TILE", tile)
        found = candidate_divergences(features, head, targets)
    exact = exactly(features)
    expected = reference_divergences(exact, wide(head), targets)
    _agree(found, features, exact, expected, gradient_atol=1e4 * 1e-7)


@pytest.mark.parametrize("operand", [torch.float32, torch.bfloat16], ids=["wide", "narrow"])
@pytest.mark.parametrize(
    "divergence", [FORWARD, *DIVERGENCES], ids=lambda divergence: divergence.kind
)
def test_bfloat16_errs_no_more_than_plain_bfloat16_autograd(
    operand: torch.dtype, divergence: Divergence
) -> None:
    """Narrow operands are those of a GPU's matrix units. Here the CPU reads them in float32."""
    make = make_bins if divergence.tail == "bucket" else make_targets
    errors, plain_errors = [], []
    for seed in range(12):
        torch.manual_seed(seed)
        head = Head(make_head(300, 16, seed=seed).weight.bfloat16())
        targets = make(64, 1, 8, 300)
        features = torch.randn(64, 16).bfloat16().requires_grad_()
        exact = features.detach().double().requires_grad_()
        truth = gradient_of(
            reference_divergences(exact, wide(head), targets, divergence).mean(), exact
        )
        plain = reference_divergences(features, head, targets, divergence).mean()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiles, "operand_dtype", lambda _: operand)
            patch.setattr(tiles, "_CPU_TILE", (32, 64))
            found = candidate_divergences(features, head, targets, divergence)
        value = found.matched(torch.zeros(64).long()).mean()
        errors.append((gradient_of(value, features).double() - truth).norm().item())
        plain_errors.append((gradient_of(plain, features).double() - truth).norm().item())
    assert sum(errors) <= sum(plain_errors)


def test_autocast_changes_neither_sums_nor_dtypes() -> None:
    head = make_head(70, 8, dtype=torch.float32)
    targets = make_targets(5, 2, 4, 70)
    features = torch.randn(5, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = candidate_divergences(features, head, targets)
        value = found.matched(torch.zeros(5).long()).sum()
    rounded = Head(head.weight.bfloat16().double())
    exact = exactly(features)
    expected = reference_divergences(exact, rounded, targets)
    torch.testing.assert_close(found.values.double(), expected.detach(), atol=1e-5, rtol=1e-5)
    assert found.values.dtype == torch.float32
    gradient = gradient_of(value, features)
    assert gradient.dtype == torch.float32
    true = gradient_of(expected[:, 0].sum(), exact)
    torch.testing.assert_close(gradient.double(), true, atol=1e-5, rtol=1e-5)


def test_draws_are_refused_where_a_divergence_needs_both_probabilities() -> None:
    with pytest.raises(ValueError, match="'reverse' needs tail 'bucket'"):
        Divergence("reverse", "sample")
