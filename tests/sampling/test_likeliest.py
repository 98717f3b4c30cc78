"""The likeliest tokens, found by blocks, against a search through everything."""

from __future__ import annotations

import pytest
import torch

from vlsi_cache.sampling.likeliest import likeliest_tokens


@pytest.mark.parametrize("vocab_size", [1, 3, 63, 64, 65, 256, 320, 321, 383, 700])
@pytest.mark.parametrize("k", [1, 2, 4, 9])
def test_the_likeliest_are_those_of_a_whole_search(vocab_size: int, k: int) -> None:
    k = min(k, vocab_size)
    generator = torch.Generator().manual_seed(vocab_size)
    probability = torch.softmax(4 * torch.randn(50, vocab_size, generator=generator), -1)
    values, columns = likeliest_tokens(probability, k)
    whole = probability.topk(k, dim=-1)
    assert torch.equal(values, whole.values)
    assert torch.equal(probability.gather(1, columns), values)
    assert all(len(set(row)) == k for row in columns.tolist())


def test_the_likeliest_of_tied_tokens_are_distinct_and_as_likely() -> None:
    generator = torch.Generator().manual_seed(0)
    tied = torch.randint(3, (200, 333), generator=generator).float()
    tied[0] = 0.0
    values, columns = likeliest_tokens(tied, 4)
    assert torch.equal(values, tied.topk(4, dim=-1).values)
    assert torch.equal(tied.gather(1, columns), values)
    assert all(len(set(row)) == 4 for row in columns.tolist())
