"""Choosing samples by a record's figures, against plain loops."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlsi_cache.data.selecting import choose_by_figure, disagreement, sample_figures
from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.recipe import SelectSection
from vlsi_cache.sampling.draws import coupled_draws

_OFFSETS = np.array([0, 3, 3, 4, 9], np.int64)


def _record(k: int, m: int, seed: int = 0) -> SparseDistribution:
    """Nine tokens at three taps, with few different ids so that entries meet."""
    random = np.random.default_rng(seed)
    ids = random.integers(0, 7, (9, 3, k + m)).astype(np.int32)
    for row in ids.reshape(-1, k + m):
        row[:k] = random.permutation(7)[:k]  # no two of the most likely are the same
    top = np.sort(random.dirichlet(np.ones(k + 1), (9, 3))[..., :k])[..., ::-1]
    return SparseDistribution(
        token_ids=ids,
        top_log_probs=np.log(top).astype(np.float32).reshape(9, 3, k),
        entropy=(random.integers(0, 30, (9, 3)) / 8).astype(np.float32),
        label_log_prob=(-random.integers(0, 30, (9, 3)) / 4).astype(np.float32),
    )


def _plain_overlap(record: SparseDistribution, token: int, tap: int) -> float:
    """Σ min of two weighted histograms."""
    masses = []
    for row in (tap, -1):
        mass: Counter[int] = Counter()
        weights = record.weights()[token, row]
        for token_id, weight in zip(record.token_ids[token, row], weights, strict=True):
            mass[int(token_id)] += float(weight)
        masses.append(mass)
    return sum(min(value, masses[1][token_id]) for token_id, value in masses[0].items())


@pytest.mark.parametrize(("k", "m"), [(0, 5), (3, 4), (4, 0), (0, 1)])
@pytest.mark.parametrize("by", ["teacher_loss", "entropy", "disagreement"])
def test_a_figure_is_the_mean_over_the_tokens_of_a_sample(by: Any, k: int, m: int) -> None:
    record = _record(k, m)
    tap = {"tap": 5} if by == "disagreement" else {}
    section = SelectSection(by=by, keep=0.5, order="middle", **tap)
    found = sample_figures(record, _OFFSETS, section, row=1)
    per_token = {
        "teacher_loss": lambda token: -float(record.label_log_prob[token, -1]),
        "entropy": lambda token: float(record.entropy[token, -1]),
        "disagreement": lambda token: 1 - _plain_overlap(record, token, 1),
    }[by]
    for sample, (start, stop) in enumerate(itertools.pairwise(_OFFSETS)):
        if start == stop:
            assert np.isnan(found[sample])
        else:
            expected = np.mean([per_token(token) for token in range(start, stop)])
            assert found[sample] == pytest.approx(expected, abs=1e-6)


def test_the_tap_below_the_output_shows_the_total_variation_and_a_lower_one_no_less() -> None:
    """Coupled draws share what a maximal coupling allows."""
    generator = torch.Generator().manual_seed(0)
    num_tokens, num_draws = 20_000, 14
    logits = torch.randn(3, 40, generator=generator) * 1.5
    taps = [row.softmax(-1).expand(num_tokens, -1).contiguous() for row in logits]
    drawn = None
    positions = []
    for probability in reversed(taps):  # from the output backwards
        uniforms = torch.rand(num_tokens, generator=generator, dtype=torch.float64)
        drawn = coupled_draws(probability, uniforms, num_draws, later=drawn)
        positions.insert(0, drawn.positions.numpy().astype(np.int32))
    empty = np.zeros((num_tokens, 0), np.float32)
    zero = np.zeros(num_tokens, np.float32)
    lowest, below, output = (SparseDistribution(ids, empty, zero, zero) for ids in positions)

    def variation(row: int) -> float:
        return float((taps[row][0] - taps[-1][0]).abs().sum() / 2)

    assert disagreement(below, output).mean() == pytest.approx(variation(1), abs=0.004)
    assert disagreement(lowest, output).mean() > variation(0) - 0.004
    assert disagreement(output, output).max() == pytest.approx(0, abs=1e-6)


def _keys(contents: list[int]) -> Any:
    digests = b"".join(hashlib.sha256(bytes([content])).digest() for content in contents)
    return np.frombuffer(digests, np.uint8).reshape(-1, 32)


_FIGURES = st.lists(
    st.tuples(st.sampled_from([0.0, 0.25, 0.5, 3.0, float("nan")]), st.integers(0, 3)),
    min_size=1,
    max_size=12,
)


@given(_FIGURES, st.sampled_from(["highest", "lowest", "middle"]), st.floats(0.01, 1))
def test_a_part_is_a_stretch_of_the_ranks_and_ties_follow_the_content(
    samples: list[tuple[float, int]], order: Any, keep: float
) -> None:
    figures = np.array([figure for figure, _ in samples])
    keys = _keys([content for _, content in samples])
    section = SelectSection(by="entropy", keep=keep, order=order)
    choice = choose_by_figure(figures, keys, section)
    ranks = sorted(
        (figures[index], keys[index].tobytes(), index)
        for index in range(len(samples))
        if figures[index] == figures[index]
    )
    kept = max(int(keep * len(ranks) + 0.5), 1) if ranks else 0
    start = {"lowest": 0, "middle": (len(ranks) - kept) // 2, "highest": len(ranks) - kept}[order]
    expected = sorted(index for _, _, index in ranks[start : start + kept])
    assert choice.kept.tolist() == expected
    others = {index for _, _, index in ranks} - set(expected)
    assert choice.unchosen.tolist() == sorted(others)


@given(_FIGURES, st.sampled_from([(0.25, 0.5), (None, 0.25), (0.5, None), (5.0, 9.0), (0.3, 0.4)]))
def test_bounds_belong_to_what_they_choose(
    samples: list[tuple[float, int]], between: tuple[float | None, float | None]
) -> None:
    figures = np.array([figure for figure, _ in samples])
    section = SelectSection(by="entropy", between=between)
    choice = choose_by_figure(figures, _keys([content for _, content in samples]), section)
    least = -9.0 if between[0] is None else between[0]
    greatest = 9.0 if between[1] is None else between[1]
    expected = [i for i, figure in enumerate(figures) if least <= figure <= greatest]
    assert choice.kept.tolist() == expected


def test_a_report_has_the_counts_and_the_ranges_on_either_side() -> None:
    figures = np.array([0.5, 4.0, np.nan, 1.0, 2.0])
    keys = _keys([0, 1, 2, 3, 4])

    def report(order: Any, keep: float = 0.5) -> str:
        section = SelectSection(by="entropy", keep=keep, order=order)
        return choose_by_figure(figures, keys, section).report()

    assert report("middle") == (
        "2 of 4 samples are chosen, from 1 to 2. Left out: 1 from 0.5 to 0.5 and 1 from 4 to 4"
    )
    assert report("highest").endswith("from 2 to 4. Left out: 2 from 0.5 to 1")
    assert report("lowest", 1.0).endswith(
        "4 of 4 samples are chosen, from 0.5 to 4. Left out: none"
    )
