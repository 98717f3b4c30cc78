"""KL from a whole distribution."""

from __future__ import annotations

import pytest
import torch

from support.heads import gradient_of, make_head
from vlsi_cache.objectives import dense_divergence, tiles


@pytest.mark.parametrize("chunk", [1, 64, 1 << 24])
def test_dense_divergence_is_kl_from_the_target(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "_CPU_ROWS", chunk)
    head, target_head = make_head(30, 6), make_head(33, 4, seed=2)
    features = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    target = torch.randn(7, 4, dtype=torch.float64)
    value = dense_divergence(features, head.real_rows(25), target, target_head.real_rows(25))
    p = torch.softmax(target @ target_head.weight[:25].T, -1)
    q = torch.log_softmax(features @ head.weight[:25].T, -1)
    expected = (p * (p.log() - q)).sum(-1)
    torch.testing.assert_close(value.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        gradient_of(value.sum(), features),
        gradient_of(expected.sum(), features),
        atol=1e-5,
        rtol=1e-5,
    )


def test_a_process_without_tokens_has_a_graph_to_go_back_through() -> None:
    features = torch.randn(0, 6, requires_grad=True)
    head, target_head = make_head(30, 6), make_head(33, 4, seed=2)
    value = dense_divergence(features, head, torch.randn(0, 4), target_head)
    assert value.shape == (0,)
    assert gradient_of(value.sum(), features).shape == (0, 6)
