"""Ridge regression from moments is that of all rows at once."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlsi_cache.training.ridge import RidgeMoments


@given(
    st.integers(0, 30), st.integers(1, 4), st.integers(1, 7), st.floats(0.01, 10.0), st.integers(0)
)
@settings(max_examples=40, deadline=None)
def test_a_map_between_sizes_is_the_ridge_regression_whatever_the_batches(
    num_tokens: int, num_batches: int, wanted: int, penalty: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed % 2**31)
    state = torch.randn(num_tokens, 5, generator=generator)
    asked = torch.randn(num_tokens, wanted, generator=generator)
    moments = RidgeMoments(5, torch.device("cpu"), wanted)
    for part in torch.arange(num_tokens).chunk(num_batches):
        moments.add(state[part], asked[part])
    # plain least squares: the penalty as rows that ask for 0
    rows = torch.cat([state, math.sqrt(penalty) * torch.eye(5)]).double()
    reference = torch.linalg.lstsq(rows, torch.cat([asked, torch.zeros(5, wanted)]).double())
    found = moments.linear(penalty)
    assert found.shape == (wanted, 5)
    torch.testing.assert_close(found, reference.solution.T.float(), rtol=1e-3, atol=1e-4)
