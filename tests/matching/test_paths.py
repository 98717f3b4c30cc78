"""Whole-path matching against enumeration of every path, and against sampled frequencies."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlsi_cache.matching import expected_match, match_layers, shortest_path
from vlsi_cache.recipe import MatchingSection

SIZES = {"num_student": st.integers(1, 4), "extra": st.integers(0, 4), "seed": st.integers(0, 999)}


def _divergence(num_student: int, extra: int, seed: int, *leading: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*leading, num_student, num_student + extra, generator=generator) * 3


def _paths_of_algorithm_1(
    divergence: Tensor, matching: MatchingSection, taken: tuple[int, ...] = ()
) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every path with its probability, by the loop that the paper prints."""
    num_student, num_teacher = divergence.shape
    tap = len(taken)
    if tap == num_student:
        yield taken, 1.0
        return
    first = 0
    if matching.search_range:
        first = tap
    if matching.order:
        first = taken[-1] + 1 if taken else 0
    last = num_teacher - num_student + tap if matching.search_range else num_teacher - 1
    row = divergence[tap, first : last + 1].double()
    spread = row.max() - row.min()
    heat = {"paper": 2 / (spread + 1e-6), "scale_free": spread / 2 + 1e-6}.get(
        str(matching.temperature), torch.tensor(0.7).double()
    )
    for offset, share in enumerate(torch.softmax(-row / heat, 0).tolist()):
        for path, probability in _paths_of_algorithm_1(
            divergence, matching, (*taken, first + offset)
        ):
            yield path, share * probability


@settings(deadline=None, max_examples=60)
@given(
    **SIZES,
    switches=st.sampled_from([(True, True), (True, False), (False, False)]),
    temperature=st.sampled_from(["paper", "scale_free", 0.7]),
)
def test_expected_shares_are_the_marginals_of_all_paths(
    num_student: int, extra: int, seed: int, switches: tuple[bool, bool], temperature: float
) -> None:
    matching = MatchingSection(
        strategy="expected", search_range=switches[0], order=switches[1], temperature=temperature
    )
    divergence = _divergence(num_student, extra, seed)
    expected = torch.zeros(divergence.shape, dtype=torch.float64)
    for path, probability in _paths_of_algorithm_1(divergence, matching):
        for tap, other in enumerate(path):
            expected[tap, other] += probability
    shares, temperatures, choice = expected_match(divergence, matching)
    torch.testing.assert_close(shares.double(), expected, atol=1e-5, rtol=1e-4)
    assert temperatures.shape == choice.shape == (num_student,)
    assert torch.isfinite(temperatures).all()
    assert ((choice >= 0) & (choice <= 1 + 1e-6)).all()


def test_expected_shares_are_the_frequencies_of_algorithm_1() -> None:
    num_draws = 20_000
    divergence = _divergence(3, 3, 5)
    shares, temperatures, choice = expected_match(divergence, MatchingSection(strategy="expected"))
    many = divergence.expand(num_draws, -1, -1)
    drawn = match_layers(many, MatchingSection(), torch.Generator().manual_seed(0))
    spread = (shares * (1 - shares) / num_draws).sqrt()
    assert ((drawn.shares.mean(0) - shares).abs() <= 5 * spread + 1e-7).all()
    assert drawn.temperature is not None
    assert drawn.choice is not None
    for tap in range(3):
        had_choice = drawn.choice[:, tap] == 1
        error = (choice[tap] * (1 - choice[tap]).clamp_min(0) / num_draws).sqrt()
        assert (had_choice.float().mean() - choice[tap]).abs() <= 5 * error + 1e-6
        some = drawn.temperature[had_choice, tap]
        error = some.std() / len(some) ** 0.5
        assert (some.mean() - temperatures[tap]).abs() <= 5 * error + 1e-6


def test_a_tap_with_one_candidate_has_no_choice() -> None:
    divergence = _divergence(3, 0, 5)
    _, _, choice = expected_match(divergence, MatchingSection(strategy="expected"))
    drawn = match_layers(divergence, MatchingSection(), torch.Generator().manual_seed(0))
    assert drawn.choice is not None
    assert (choice == 0).all()
    assert (drawn.choice == 0).all()


@settings(deadline=None, max_examples=60)
@given(**SIZES)
def test_the_shortest_path_is_the_least_of_all_ascending_ones(
    num_student: int, extra: int, seed: int
) -> None:
    divergence = _divergence(num_student, extra, seed)
    rows = torch.arange(num_student)
    least = min(
        divergence[rows, list(path)].sum().item()
        for path in itertools.combinations(range(num_student + extra), num_student)
    )
    path = shortest_path(divergence)
    assert (path.diff() > 0).all()
    torch.testing.assert_close(divergence[rows, path].sum().item(), least)


def test_each_sample_is_matched_by_itself() -> None:
    divergence = _divergence(3, 4, 1, 5, 2)
    shares, _, _ = expected_match(divergence, MatchingSection(strategy="expected"))
    path = shortest_path(divergence)
    for index in itertools.product(range(5), range(2)):
        alone, _, _ = expected_match(divergence[index], MatchingSection(strategy="expected"))
        torch.testing.assert_close(shares[index], alone)
        assert torch.equal(path[index], shortest_path(divergence[index]))


def test_equal_divergences_give_no_bad_number() -> None:
    shares, temperatures, _ = expected_match(torch.ones(2, 4), MatchingSection(strategy="expected"))
    assert torch.isfinite(shares).all()
    assert torch.isfinite(temperatures).all()
