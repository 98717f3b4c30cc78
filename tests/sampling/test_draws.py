"""Systematic and coupled draws against a plain running sum, and against their distributions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlsi_cache.sampling import Drawn, coupled_draws, systematic_draws


def plain_draws(weights: Tensor, uniform: float, num_draws: int) -> list[int]:
    """One running sum, one pointer after another."""
    total = float(weights.sum())
    found = []
    for step in range(num_draws):
        pointer = (uniform + step) / num_draws * total
        running = 0.0
        for column, weight in enumerate(weights.tolist()):
            running += weight
            if running > pointer:
                found.append(column)
                break
    return found


def plain_coupled(p: Tensor, q: Tensor, kept: list[int], uniform: float) -> list[int]:
    stays = [min(1.0, float(p[i] / q[i])) for i in kept]
    fresh = (p - q).clamp(min=0)
    weights = fresh * ((len(kept) - sum(stays)) / max(float(fresh.sum()), 1e-300))
    for column, chance in zip(kept, stays, strict=True):
        weights[column] += chance
    return plain_draws(weights, uniform, len(kept))


def distributions(count: int, vocab: int, sharpness: float) -> Tensor:
    return torch.softmax(torch.randn(count, vocab, dtype=torch.float64) * sharpness, -1)


@settings(deadline=None, max_examples=60)
@given(
    vocab=st.sampled_from([1, 2, 7, 127, 128, 129, 300]),
    num_draws=st.integers(1, 14),
    sharpness=st.floats(0, 12),
    seed=st.integers(0, 2**31),
)
def test_draws_are_those_of_a_plain_running_sum(
    vocab: int, num_draws: int, sharpness: float, seed: int
) -> None:
    torch.manual_seed(seed)
    p, q = distributions(2, vocab, sharpness)
    dice = torch.rand(2, dtype=torch.float64)
    later = coupled_draws(q[None], dice[:1], num_draws)
    assert later.positions[0].tolist() == plain_draws(q, float(dice[0]), num_draws)
    drawn = coupled_draws(p[None], dice[1:], num_draws, later)
    assert drawn.positions[0].tolist() == plain_coupled(
        p, q, later.positions[0].tolist(), float(dice[1])
    )


def test_systematic_draws_are_in_proportion_and_never_touch_weightless_entries() -> None:
    weights = torch.tensor([[0.0, 0.1, 0.0, 0.6, 0.3, 0.0]])
    uniforms = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    drawn = systematic_draws(weights.expand(1000, -1), uniforms, 2)
    shares = torch.bincount(drawn.flatten(), minlength=6) / 2000
    torch.testing.assert_close(shares, weights[0], atol=1e-3, rtol=0)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_pointers_at_the_ends_touch_no_weightless_entry(uniform: float) -> None:
    weights = torch.zeros(1, 400)
    weights[0, 130:133] = torch.tensor([0.1, 0.0, 0.7])
    drawn = systematic_draws(weights, torch.tensor([uniform], dtype=torch.float64), 9)
    assert set(drawn[0].tolist()) == {130, 132}


def test_a_row_of_zeros_or_nan_still_gives_columns() -> None:
    for row in (torch.zeros(1, 300), torch.full((1, 300), torch.nan)):
        drawn = systematic_draws(row, torch.tensor([0.3], dtype=torch.float64), 4)
        assert ((drawn >= 0) & (drawn < 300)).all()
        coupled = coupled_draws(row, torch.rand(1, dtype=torch.float64), 4, Drawn(row, drawn))
        assert ((coupled.positions >= 0) & (coupled.positions < 300)).all()


def chain(taps: Tensor, num_draws: int) -> list[Drawn]:
    """Draws of taps [L, N, V] from the last to the first."""
    drawn: list[Drawn] = []
    for tap in taps.flip(0):
        dice = torch.rand(len(tap), dtype=torch.float64)
        drawn.append(coupled_draws(tap, dice, num_draws, drawn[-1] if drawn else None))
    return drawn[::-1]


def related_taps(vocab: int) -> Tensor:
    torch.manual_seed(5)
    steps = torch.randn(4, vocab) * torch.tensor([1.5, 0.4, 0.4, 2.0])[:, None]
    return torch.softmax(steps.cumsum(0), -1)


def test_every_tap_of_a_chain_is_drawn_in_proportion() -> None:
    count, num_draws, vocab = 20_000, 3, 200
    taps = related_taps(vocab)
    for p, drawn in zip(taps, chain(taps[:, None].expand(-1, count, -1), num_draws), strict=True):
        found = torch.bincount(drawn.positions.flatten(), minlength=vocab) / (count * num_draws)
        # the error of independent draws; systematic draws spread less
        error = (p * (1 - p) / (count * num_draws)).sqrt()
        assert ((found - p).abs() < 4.5 * error + 1e-9).all()


def test_neighbouring_taps_share_the_more_the_closer_they_are() -> None:
    taps = related_taps(200)[:, None].expand(-1, 500, -1)

    def shared(left: Drawn, right: Drawn) -> float:
        same = (left.positions[:, :, None] == right.positions[:, None]).any(-1)
        return float(same.float().mean())

    drawn, alone = chain(taps, 8), [chain(tap[None], 8)[0] for tap in taps]
    assert shared(drawn[0], drawn[1]) > shared(alone[0], alone[1]) + 0.2
    assert shared(drawn[1], drawn[2]) > shared(drawn[2], drawn[3])


def test_equal_taps_draw_the_same() -> None:
    taps = related_taps(200)[1:2].expand(3, -1)[:, None].expand(-1, 50, -1)
    first, second, third = chain(taps, 12)
    assert torch.equal(first.positions, second.positions)
    assert torch.equal(second.positions, third.positions)
