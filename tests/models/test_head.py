"""The head: transforms, their slopes, and rows that are padding."""

from __future__ import annotations

import pytest
import torch

from support.families import tiny_model
from vlsi_cache.models import Backbone, Head, LogitTransform, bind_decoder

TRANSFORMS = [
    LogitTransform(),
    LogitTransform(scale=0.0625),
    LogitTransform(softcap=30.0),
    LogitTransform(scale=2.0, softcap=5.0),
]


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_slope_from_the_logits_is_the_derivative(transform: LogitTransform) -> None:
    raw = torch.linspace(-8, 8, 33, dtype=torch.float64, requires_grad=True)
    logits = transform.apply(raw)
    (slope,) = torch.autograd.grad(logits.sum(), raw)
    torch.testing.assert_close(transform.derivative(logits.detach()), slope)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_keep_the_order_of_tokens(transform: LogitTransform) -> None:
    logits = transform.apply(torch.linspace(-20, 20, 101, dtype=torch.float64))
    assert bool((logits.diff() > 0).all())


def test_a_softcap_bounds_the_logits() -> None:
    assert LogitTransform(softcap=5.0).apply(torch.tensor([1e4, -1e4])).tolist() == [5.0, -5.0]


def test_only_the_identity_is_the_identity() -> None:
    assert [transform.is_identity for transform in TRANSFORMS] == [True, False, False, False]


def test_padded_rows_are_left_out_before_the_product() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(12, 4, generator=generator), torch.randn(12, generator=generator)
    features = torch.randn(2, 3, 4, generator=generator)
    head = Head(weight, bias, LogitTransform(softcap=2.0))
    assert head.num_rows == 12
    real = head.real_rows(9).logits(features)
    assert real.shape == (2, 3, 9)
    torch.testing.assert_close(real, head.logits(features)[..., :9])
    torch.testing.assert_close(
        real, LogitTransform(softcap=2.0).apply(features @ weight[:9].T + bias[:9])
    )


def test_real_rows_are_views_of_the_weight() -> None:
    head = Head(torch.zeros(12, 4))
    real = head.real_rows(9)
    assert real.num_rows == 9
    assert real.weight.data_ptr() == head.weight.data_ptr()
    assert real.bias is None


def test_a_vocabulary_larger_than_the_head_takes_all_rows() -> None:
    head = Head(torch.zeros(12, 4), torch.zeros(12))
    assert head.real_rows(99).weight is head.weight
    assert head.real_rows(12).bias is head.bias


def test_the_head_takes_autocasts_dtype_only_under_autocast() -> None:
    head = Head(torch.zeros(12, 4), torch.zeros(12), LogitTransform(softcap=2.0))
    assert head.to_autocast() is head
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = head.to_autocast()
    assert narrow.weight.dtype == torch.bfloat16
    assert narrow.bias is not None
    assert narrow.bias.dtype == torch.bfloat16
    assert narrow.transform == head.transform


def test_features_are_brought_to_the_heads_dtype() -> None:
    head = Head(torch.zeros(12, 4, dtype=torch.bfloat16))
    assert head.logits(torch.zeros(1, 4)).dtype == torch.bfloat16


def test_a_backbones_head_has_only_the_tokenizers_rows() -> None:
    decoder = bind_decoder(tiny_model("llama"))
    backbone = Backbone("tiny", None, decoder, vocab_size=100, fingerprint="")
    assert decoder.head.num_rows > 100
    assert backbone.head.num_rows == 100
    with torch.no_grad():
        decoder.head.weight.add_(1.0)
    torch.testing.assert_close(backbone.head.weight, decoder.head.weight[:100])
