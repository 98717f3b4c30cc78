"""Cross-entropy through a head that trains, against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from support.heads import make_head
from vlsi_cache.models import Head
from vlsi_cache.objectives import (
    linear_cross_entropy,
    linear_soft_cross_entropy,
    reference_cross_entropy,
    reference_soft_cross_entropy,
    tiles,
)


@settings(deadline=None, max_examples=40)
@given(
    num_tokens=st.integers(0, 9),
    entries=st.integers(1, 6),
    softcap=st.sampled_from([None, 2.0]),
    chunk=st.sampled_from([1, 64, 1 << 24]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_weighted_targets_are_the_references(
    num_tokens: int, entries: int, softcap: float | None, chunk: int, dtype: torch.dtype
) -> None:
    """An id may come twice, weights may have any sum and any sign, and 0 counts nothing."""
    head = make_head(11, 5, bias=True, softcap=softcap, scale=1.0, dtype=dtype)
    features = torch.randn(num_tokens, 5, dtype=dtype)
    ids = torch.randint(8, (num_tokens, entries))
    weights = torch.randn(num_tokens, entries).relu() - 0.1
    sources = [value.requires_grad_() for value in (features, head.weight, head.bias)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_CPU_ROWS", chunk)
        value, log_probs = linear_soft_cross_entropy(features, head.real_rows(9), ids, weights)
        ours = torch.autograd.grad(value, sources)
    exact = [source.detach().double().requires_grad_() for source in sources]
    plain = Head(exact[1], exact[2], head.transform).real_rows(9)
    expected, wanted = reference_soft_cross_entropy(exact[0], plain, ids, weights)
    torch.testing.assert_close(value.double(), expected.double(), atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(log_probs.double(), wanted.double(), atol=2e-5, rtol=2e-5)
    for found, reference in zip(ours, torch.autograd.grad(expected, exact), strict=True):
        torch.testing.assert_close(found.double(), reference, atol=2e-5, rtol=2e-5)


@settings(deadline=None, max_examples=60)
@given(
    num_tokens=st.integers(0, 9),
    hidden_size=st.integers(1, 7),
    vocab=st.integers(2, 40),
    padding=st.integers(0, 5),
    bias=st.booleans(),
    softcap=st.sampled_from([None, 2.0]),
    scale=st.sampled_from([1.0, 3.0]),
    chunk=st.sampled_from([1, 64, 1 << 24]),
    tile=st.sampled_from([(1, 1), (2, 3), (1024, 2048)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_value_and_all_gradients_are_the_references(
    num_tokens: int,
    hidden_size: int,
    vocab: int,
    padding: int,
    bias: bool,
    softcap: float | None,
    scale: float,
    chunk: int,
    tile: tuple[int, int],
    dtype: torch.dtype,
) -> None:
    head = make_head(
        vocab + padding, hidden_size, bias=bias, softcap=softcap, scale=scale, dtype=dtype
    )
    features = torch.randn(num_tokens, hidden_size, dtype=dtype)
    labels = torch.randint(vocab, (num_tokens,))
    sources = [
        value.requires_grad_() for value in (features, head.weight, head.bias) if value is not None
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_CPU_ROWS", chunk)
        patch.setattr(tiles, "_CPU_TILE", tile)
        value = linear_cross_entropy(features, head.real_rows(vocab), labels) * 0.7
        ours = torch.autograd.grad(value, sources)
    exact = [source.detach().double().requires_grad_() for source in sources]
    plain_head = Head(exact[1], exact[2] if bias else None, head.transform)
    expected = reference_cross_entropy(exact[0], plain_head.real_rows(vocab), labels) * 0.7
    torch.testing.assert_close(value.double(), expected.double(), atol=2e-5, rtol=2e-5)
    for found, plain in zip(ours, torch.autograd.grad(expected, exact), strict=True):
        torch.testing.assert_close(found.double(), plain, atol=2e-5, rtol=2e-5)


def test_without_gradients_only_logits_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    products, product = [], tiles.wide_product

    def counted(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
        products.append(left.shape)
        return product(left, right, dtype)

    monkeypatch.setattr(tiles, "wide_product", counted)
    head, features = make_head(30, 4), torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    head.weight.requires_grad_()
    with torch.no_grad():
        linear_cross_entropy(features, head, torch.randint(30, (5,)))
    assert len(products) == 1


@pytest.mark.parametrize("operand", [torch.float32, torch.bfloat16], ids=["wide", "narrow"])
def test_bfloat16_errs_no_more_than_plain_bfloat16_autograd(operand: torch.dtype) -> None:
    errors, plain_errors = torch.zeros(2), torch.zeros(2)
    for seed in range(12):
        torch.manual_seed(seed)
        weight = make_head(300, 16, seed=seed).weight.bfloat16().requires_grad_()
        features = torch.randn(64, 16).bfloat16().requires_grad_()
        labels = torch.randint(300, (64,))
        exact = [value.detach().double().requires_grad_() for value in (features, weight)]
        truth = torch.autograd.grad(
            reference_cross_entropy(exact[0], Head(exact[1]), labels), exact
        )
        sources = [features, weight]
        plain = torch.autograd.grad(
            reference_cross_entropy(features, Head(weight), labels), sources
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiles, "operand_dtype", lambda _: operand)
            ours = torch.autograd.grad(
                linear_cross_entropy(features, Head(weight), labels), sources
            )
        errors += torch.stack([(a.double() - b).norm() for a, b in zip(ours, truth, strict=True)])
        plain_errors += torch.stack(
            [(a.double() - b).norm() for a, b in zip(plain, truth, strict=True)]
        )
    assert (errors <= plain_errors).all()


def test_a_frozen_head_gets_no_gradient_and_costs_none() -> None:
    head = make_head(30, 6, dtype=torch.float32)
    features = torch.randn(9, 6, requires_grad=True)
    linear_cross_entropy(features, head, torch.randint(30, (9,))).backward()
    assert features.grad is not None
    assert head.weight.grad is None


def test_a_second_backward_is_refused() -> None:
    head = make_head(30, 6, dtype=torch.float32)
    features = torch.randn(9, 6, requires_grad=True)
    value = linear_cross_entropy(features, head, torch.randint(30, (9,)))
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        value.backward()
