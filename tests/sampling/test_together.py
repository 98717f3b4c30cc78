"""Records of likely tokens and draws together, against the distributions that they stand for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.levels import FRACTIONS, TAILS
from vlsi_cache.models import Head
from vlsi_cache.models.binding.head import LogitTransform
from vlsi_cache.sampling import TapRecorder, coupled_tail_draws, num_uniforms

VOCAB = 40
REPEATS = 6_000


def record_repeatedly(
    logits: Tensor, *, k: int, m: int, repeats: int = REPEATS, seed: int = 0
) -> SparseDistribution:
    """Record distributions ``[L, V]`` as taps of one token, again and again."""
    vocab = logits.shape[1]
    head = Head(torch.eye(vocab), None, LogitTransform())
    recorder = TapRecorder(head, k=k, m=m, drawn_from="whole", order=torch.arange(vocab).flip(0))
    generator = torch.Generator().manual_seed(seed)
    shape = repeats, len(logits), num_uniforms(k)
    dice = torch.rand(shape, generator=generator, dtype=torch.float64)
    features = [row.expand(repeats, -1) for row in logits]
    return recorder.record(features, torch.zeros(repeats, dtype=torch.long), dice)


def dense(distribution: SparseDistribution, vocab: int) -> np.ndarray:
    """Weights of all ids, ``[N, L, V]`` float64."""
    found = np.zeros((*distribution.shape, vocab))
    weights = distribution.weights().astype(np.float64)
    for entry in range(weights.shape[-1]):
        ids = distribution.token_ids[..., entry, None].astype(np.int64)
        np.put_along_axis(
            found, ids, np.take_along_axis(found, ids, -1) + weights[..., entry, None], -1
        )
    return found


def taps_of(sharpness: tuple[float, ...], vocab: int = VOCAB) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(vocab, generator=generator)
    own = torch.randn(len(sharpness), vocab, generator=generator)
    return (base + 0.5 * own) * torch.tensor(sharpness)[:, None]


@pytest.mark.parametrize(("k", "m"), [(1, 1), (1, 6), (4, 3), (4, 12), (8, 2)])
def test_the_mean_weight_of_every_token_is_its_probability(k: int, m: int) -> None:
    logits = taps_of((0.1, 1.0, 2.0, 4.0, 9.0))
    weights = dense(record_repeatedly(logits, k=k, m=m), VOCAB)
    # Six standard errors. Weights that are seldom above 0 have an uncertain spread, and their true
    # one is at most that of 1/m at a rate of m · p.
    true = torch.softmax(logits.double(), -1).numpy()
    spread = np.maximum(weights.std(0), np.sqrt(true / m))
    slack = 6 * spread / math.sqrt(REPEATS) + 1e-4
    error = np.abs(weights.mean(0) - true)
    assert (error <= slack).all(), (error / slack).max()


@pytest.mark.parametrize(("k", "m"), [(1, 1), (4, 12), (40, 1)])
def test_weights_sum_to_one_and_are_not_negative(k: int, m: int) -> None:
    found = record_repeatedly(taps_of((0.0, 2.0, 30.0), 41), k=k, m=m, repeats=500)
    weights = found.weights()
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert (np.exp(found.top_log_probs.astype(np.float64)).sum(-1) <= 1 + 1e-6).all()


def test_stored_probabilities_are_near_and_right_on_average() -> None:
    logits = taps_of((1.0, 4.0))
    found = record_repeatedly(logits, k=4, m=12)
    true = torch.softmax(logits.double(), -1).topk(4).values.numpy()
    stored = np.exp(found.top_log_probs.astype(np.float64))
    slack = 6 * stored.std(0) / math.sqrt(REPEATS) + 1e-6
    assert (np.abs(stored.mean(0) - true) <= slack).all()
    ratios = stored / true
    assert (ratios > 0.5).all()
    assert (ratios < 2).all()


def test_the_number_of_draws_is_that_of_the_stored_tail() -> None:
    found = record_repeatedly(taps_of((0.5, 3.0, 12.0)), k=4, m=12, repeats=2000)
    tail = 1 - np.exp(found.top_log_probs.astype(np.float64)).sum(-1)
    count = found.is_beyond_top().sum(-1)
    assert (count >= np.floor(12 * tail - 1e-5)).all()
    assert (count <= np.ceil(12 * tail + 1e-5)).all()


def test_a_record_does_not_depend_on_its_batch() -> None:
    logits = taps_of((0.5, 2.0, 5.0))
    head = Head(torch.eye(VOCAB), None, LogitTransform())
    recorder = TapRecorder(head, k=4, m=12, drawn_from="whole")
    generator = torch.Generator().manual_seed(0)
    dice = torch.rand(30, 3, recorder.num_uniforms, generator=generator, dtype=torch.float64)
    features = [row + 0.1 * torch.randn(30, VOCAB, generator=generator) for row in logits]
    labels = torch.arange(30)
    whole = recorder.record(features, labels, dice)
    for part in (slice(0, 1), slice(7, 20), slice(29, 30)):
        own = recorder.record([tap[part] for tap in features], labels[part], dice[part])
        np.testing.assert_array_equal(own.token_ids, whole[part].token_ids)
        np.testing.assert_array_equal(own.top_log_probs, whole[part].top_log_probs)


def test_ties_float16_logits_and_fewer_tokens_than_k_are_recorded() -> None:
    tied = torch.zeros(1, 6)
    certain = torch.tensor([[300.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    halves = torch.tensor([[1.5, 1.5, -3.25, -3.25, 0.5, 0.0]]).half().float()
    for logits in (tied, certain, halves):
        found = record_repeatedly(logits, k=5, m=1, repeats=200)
        assert (np.diff(np.sort(found.token_ids[..., :5], -1), axis=-1) > 0).all()
        assert np.isfinite(found.weights()).all()
    np.testing.assert_allclose(record_repeatedly(certain, k=2, m=3, repeats=9).weights()[..., 0], 1)


def test_neighbouring_taps_share_draws() -> None:
    alike = taps_of((1.0, 1.0))
    alike[0] = alike[1] + 0.01
    found = record_repeatedly(alike, k=4, m=12, repeats=300)
    assert (found.token_ids[:, 0] == found.token_ids[:, 1]).mean() > 0.8


def plain_tail_mean(expected: Tensor, later: Tensor, counts: tuple[int, int]) -> Tensor:
    """How often each entry is drawn on average over many draws, with rows of one kind."""
    number, own = 20_000, torch.Generator().manual_seed(1)
    size = number, expected.numel()
    dice = torch.rand(2, number, generator=own, dtype=torch.float64)
    most = max(counts)
    first = coupled_tail_draws(
        (later * counts[1]).expand(size), torch.full((number,), counts[1]), dice[0], most
    )
    drawn = coupled_tail_draws(
        (expected * counts[0]).expand(size), torch.full((number,), counts[0]), dice[1], most, first
    )
    positions = drawn.positions[drawn.positions >= 0]
    assert len(positions) == number * counts[0]
    return torch.bincount(positions, minlength=expected.numel()).double() / number


@pytest.mark.parametrize("counts", [(3, 3), (5, 2), (2, 5), (1, 0), (0, 3)])
def test_coupled_draws_of_other_numbers_keep_their_means(counts: tuple[int, int]) -> None:
    expected = torch.tensor([0.0, 0.5, 0.2, 0.2, 0.1], dtype=torch.float64)
    later = torch.tensor([0.3, 0.1, 0.5, 0.0, 0.1], dtype=torch.float64)
    mean = plain_tail_mean(expected, later, counts)
    # A count is at most 5, and over 20,000 rows its mean stays within 0.05 of what it should be.
    torch.testing.assert_close(mean, expected * counts[0], atol=0.05, rtol=0)
    assert mean[0] == 0


def test_levels_are_those_of_the_tables() -> None:
    found = record_repeatedly(taps_of((1.0, 6.0)), k=3, m=4, repeats=500)
    probabilities = np.exp(found.top_log_probs.astype(np.float64))
    tail = 1 - probabilities.sum(-1)
    fraction = probabilities[..., 2] / probabilities.sum(-1)
    assert np.abs(tail[..., None] - TAILS).min(-1).max() < 1e-6
    assert np.abs(fraction[..., None] - FRACTIONS).min(-1).max() < 1e-6
