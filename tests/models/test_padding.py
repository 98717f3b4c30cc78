"""The rows beyond the real tokens, which let a GPU multiply fast."""

from __future__ import annotations

import pytest
import torch

from vlsi_cache.models import Head, aligned_width


def test_the_models_own_rows_are_padding() -> None:
    weight = torch.randn(192, 8)
    head = Head(weight).real_rows(150).real_rows(130)
    whole = head.aligned_weight()
    assert whole.shape == (192, 8)
    assert whole.data_ptr() == weight.data_ptr()
    assert torch.equal(whole, weight)


def test_padding_of_zeros_is_made_where_the_model_has_none() -> None:
    weight = torch.randn(100, 8, requires_grad=True)
    whole = Head(weight).aligned_weight()
    assert whole.shape == (128, 8)
    assert torch.equal(whole[:100], weight)
    assert not whole[100:].any()
    assert not whole.requires_grad
    again = Head(weight).padded()
    assert again.num_rows == 100
    assert again.aligned_weight().data_ptr() == again.weight.data_ptr()


def test_a_cast_of_all_rows_keeps_the_padding() -> None:
    weight = torch.randn(192, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        head = Head(weight).to_autocast().real_rows(150)
    assert head.aligned_weight().shape == (192, 8)
    assert head.aligned_weight().dtype == torch.bfloat16
    head.weight.float().sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad[:150], torch.ones(150, 8))
    assert not weight.grad[150:].any()


@pytest.mark.parametrize(("rows", "width"), [(1, 64), (64, 64), (65, 128), (151_643, 151_680)])
def test_the_width_of_rows(rows: int, width: int) -> None:
    assert aligned_width(rows) == width
