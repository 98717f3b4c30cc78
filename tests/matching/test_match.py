"""Drawn and fixed matchings against the paper's own examples and against enumeration."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vlsi_cache.errors import StageError
from vlsi_cache.matching import candidate_mask, match_layers, temperature, validate_reach
from vlsi_cache.recipe import MatchingSection, MatchingStrategy


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _taps(divergence: Tensor, matching: MatchingSection, generator: torch.Generator) -> Tensor:
    match = match_layers(divergence, matching, generator)
    assert match.tap is not None
    assert torch.equal(match.shares.argmax(-1), match.tap)
    assert (match.shares.sum(-1) == 1).all()
    return match.tap


@pytest.mark.parametrize(
    ("student_tap", "matched_before", "candidates"),
    [(2, 4, [5, 6, 7]), (1, 2, [3, 4, 5, 6])],
    ids=["layer 3 after a match at 4", "layer 2 after a match at 2"],
)
def test_candidates_are_those_of_the_papers_figure_2(
    student_tap: int, matched_before: int, candidates: list[int]
) -> None:
    first = torch.tensor(matched_before)  # counted from 1 in the figure, so "after" is itself
    mask = candidate_mask(student_tap, 4, 8, MatchingSection(), first)
    assert [index + 1 for index in mask.nonzero().flatten().tolist()] == candidates


def test_algorithm_1_always_ascends_and_keeps_candidates_for_the_taps_that_follow() -> None:
    divergence = torch.rand(4, 6, generator=_generator())
    generator = _generator(1)
    for _ in range(200):
        matched = _taps(divergence, MatchingSection(), generator).tolist()
        assert matched == sorted(set(matched))
        assert all(tap <= tap_of <= 2 + tap for tap, tap_of in enumerate(matched))


def test_algorithm_1_draws_paths_with_the_probabilities_of_its_softmaxes() -> None:
    divergence = torch.tensor([[0.2, 1.0, 0.7], [0.9, 0.1, 0.6]])
    expected: dict[tuple[int, int], float] = {}
    for path in itertools.combinations(range(3), 2):
        probability, first = 1.0, 0
        for student_tap, tap in enumerate(path):
            candidates = range(first, 3 - 2 + student_tap + 1)
            row = divergence[student_tap, list(candidates)]
            heat = 2 / (row.max() - row.min() + 1e-6)
            probability *= torch.softmax(-row / heat, 0)[candidates.index(tap)].item()
            first = tap + 1
        expected[path] = probability
    assert sum(expected.values()) == pytest.approx(1.0)
    generator, num_draws = _generator(2), 4000
    counts = dict.fromkeys(expected, 0)
    for _ in range(num_draws):
        first_tap, second_tap = _taps(divergence, MatchingSection(), generator).tolist()
        counts[first_tap, second_tap] += 1
    for path, probability in expected.items():
        spread = (probability * (1 - probability) / num_draws) ** 0.5
        assert counts[path] / num_draws == pytest.approx(probability, abs=5 * spread + 1e-9)


def test_bottom_1_takes_the_least_divergence_in_reach() -> None:
    divergence = torch.tensor([[3.0, 2.0, 0.0], [0.0, 2.0, 1.0]])
    everywhere = MatchingSection(strategy="bottom-1", search_range=False, order=False)
    assert _taps(divergence, everywhere, _generator()).tolist() == [2, 0]
    assert _taps(divergence, MatchingSection(strategy="bottom-1"), _generator()).tolist() == [1, 2]


def test_bottom_3_draws_each_of_the_three_least() -> None:
    divergence = torch.tensor([[5.0, 1.0, 4.0, 2.0, 3.0]])
    matching = MatchingSection(strategy="bottom-3", search_range=False, order=False)
    generator = _generator()
    drawn = {_taps(divergence, matching, generator).item() for _ in range(100)}
    assert drawn == {1, 3, 4}


@pytest.mark.parametrize(
    ("num_student", "num_teacher", "pairs"),
    [
        (4, 8, [1, 3, 5, 7]),
        (3, 3, [0, 1, 2]),
        (4, 2, [0, 0, 1, 1]),
        (7, 20, [1, 4, 7, 10, 13, 16, 19]),
    ],
)
def test_uniform_pairs_are_evenly_spaced(
    num_student: int, num_teacher: int, pairs: list[int]
) -> None:
    matching = MatchingSection(strategy="uniform", search_range=False, order=False)
    assert _taps(torch.zeros(num_student, num_teacher), matching, _generator()).tolist() == pairs


@pytest.mark.parametrize(
    ("named", "value"), [("paper", 1.0), ("scale_free", 1.0), (0.25, 0.25), ("off", 1.0)]
)
def test_temperature_follows_the_spread_of_the_candidates(named: str | float, value: float) -> None:
    row = torch.tensor([9.0, 1.0, 3.0])  # the first is out of reach
    mask = torch.tensor([False, True, True])
    switch = {"adaptive_temperature": False} if named == "off" else {"temperature": named}
    matching = MatchingSection.model_validate(switch)
    assert temperature(row, mask, matching).item() == pytest.approx(value, abs=1e-5)


def test_equal_divergences_match_without_a_bad_number() -> None:
    matched = _taps(torch.ones(2, 4), MatchingSection(), _generator())
    assert matched[0] < matched[1]


@pytest.mark.parametrize("strategy", get_args(MatchingStrategy))
def test_only_a_softmax_has_a_temperature(strategy: MatchingStrategy) -> None:
    match = match_layers(torch.rand(3, 2, 5), MatchingSection(strategy=strategy), _generator())
    if strategy in ("multinomial", "expected"):
        assert match.temperature is not None
        assert match.temperature.shape == (3, 2)
        assert (match.temperature > 0).all()
    else:
        assert match.temperature is None


def test_a_cache_without_inner_taps_is_refused_before_training() -> None:
    with pytest.raises(StageError, match="no inner teacher tap"):
        validate_reach(1, 0, MatchingSection(strategy="random", search_range=False, order=False))


def test_too_few_teacher_taps_are_refused_before_training() -> None:
    with pytest.raises(StageError, match=r"fewer teacher taps than student taps.*at least 3"):
        validate_reach(3, 2, MatchingSection())
    validate_reach(3, 2, MatchingSection(strategy="random", search_range=False, order=False))


@given(
    strategy=st.sampled_from(get_args(MatchingStrategy)),
    num_student=st.integers(1, 5),
    extra=st.integers(0, 5),
    ordered=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_strategy_stays_in_reach(
    strategy: MatchingStrategy, num_student: int, extra: int, ordered: bool, seed: int
) -> None:
    num_teacher = num_student + extra
    divergence = torch.rand(num_student, num_teacher, generator=_generator(seed))
    matching = MatchingSection(strategy=strategy, order=ordered or strategy == "shortest")
    shares = match_layers(divergence, matching, _generator(seed)).shares
    torch.testing.assert_close(shares.sum(-1), torch.ones(num_student))
    for tap, row in enumerate(shares):
        matched = row.nonzero().flatten().tolist()
        assert all(tap <= other <= extra + tap for other in matched)


def test_each_entry_of_the_leading_axes_is_matched_by_itself() -> None:
    divergence = torch.rand(64, 3, 6, generator=_generator())
    least = _taps(divergence, MatchingSection(strategy="bottom-1"), _generator())
    assert least.shape == (64, 3)
    for rows, matched in zip(divergence, least, strict=True):
        assert torch.equal(_taps(rows, MatchingSection(strategy="bottom-1"), _generator()), matched)
    drawn = _taps(divergence, MatchingSection(), _generator())
    assert (drawn.diff(dim=-1) > 0).all()
