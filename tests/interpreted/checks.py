"""Checks of the kernels, which ``test_kernels.py`` runs under Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from support.heads import exactly, gradient_of, make_bins, make_head, make_targets, wide
from vlsi_cache.kernels.rows import softmax_rows, weighted_rows
from vlsi_cache.kernels.stretches import ScaledTail, excess_sums, stretch_moments
from vlsi_cache.models import Head, aligned_width
from vlsi_cache.objectives import (
    FORWARD,
    Divergence,
    candidate_divergences,
    frozen_head,
    fused,
    linear_soft_cross_entropy,
    reference_divergences,
    reference_soft_cross_entropy,
    sweep_head,
    tiles,
)
from vlsi_cache.sampling import recorder as recording
from vlsi_cache.sampling import streamed
from vlsi_cache.sampling.draws import STRETCH
from vlsi_cache.sampling.together import draw_together

WIDTHS = [1, 63, 64, 300, 5_000]

# NumPy, which interprets, warns of ∞ · 0 and of rows of NaN. A GPU does not.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def padded(values: Tensor) -> Tensor:
    """Widen rows with numbers that must not matter."""
    width = aligned_width(values.shape[1])
    wide_rows = torch.full((len(values), width), 77.0, dtype=values.dtype)
    wide_rows[:, : values.shape[1]] = values
    return wide_rows


@pytest.mark.parametrize("width", WIDTHS)
def test_softmax_of_rows(width: int) -> None:
    torch.manual_seed(width)
    logits = torch.randn(5, width) * 8
    scales = torch.rand(5)
    found, log_mass = softmax_rows(padded(logits), width, torch.float32, scales)
    exact = logits.double().softmax(-1) * scales[:, None]
    torch.testing.assert_close(found[:, :width].double(), exact, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(log_mass, logits.logsumexp(-1), atol=1e-5, rtol=1e-5)
    assert not found[:, width:].any()


def test_softmax_of_no_rows_and_of_unusual_values() -> None:
    none, log_mass = softmax_rows(torch.empty(0, 64), 3, torch.bfloat16)
    assert none.shape == (0, 64)
    assert log_mass.shape == (0,)
    logits = torch.zeros(4, 64)
    logits[0, 1] = -torch.inf  # a token that cannot come
    logits[1, 2] = torch.inf
    logits[2, 0] = torch.nan
    logits[3] = -50.0
    found, log_mass = softmax_rows(logits, 4, torch.float32)
    torch.testing.assert_close(found[0, :4], torch.tensor([1 / 3, 0, 1 / 3, 1 / 3]))
    torch.testing.assert_close(found[3, :4], torch.full((4,), 0.25))
    assert log_mass[1:3].isnan().all()


@pytest.mark.parametrize("size", [1, 40, 1100])
def test_weighted_rows_of_a_head(size: int) -> None:
    torch.manual_seed(size)
    weight = torch.randn(50, size).bfloat16()
    ids, factors = torch.randint(50, (6, 9)), torch.randn(6, 9)
    base, base_factors = torch.randn(6, size), torch.randn(6)
    found = weighted_rows(weight, ids, factors, base, base_factors)
    exact = (weight.double()[ids] * factors[..., None]).sum(1) + base_factors[:, None] * base
    torch.testing.assert_close(found.double(), exact, atol=1e-5, rtol=1e-5)
    assert weighted_rows(weight, ids[:0], factors[:0], base[:0], base_factors[:0]).shape[0] == 0


@pytest.mark.parametrize("width", WIDTHS)
def test_figures_of_stretches(width: int) -> None:
    torch.manual_seed(width)
    logits = (torch.randn(4, width) * 5).bfloat16()
    logits[0, 0] = -torch.inf
    found = stretch_moments(logits, STRETCH)
    close = {"atol": 1e-4, "rtol": 1e-5}
    for number, part in enumerate(logits.double().split(STRETCH, 1)):
        highest = part.amax(1)
        base = highest.where(highest > -torch.inf, torch.zeros(()).double())
        share = (part - base[:, None]).exp()
        weighted = (part.masked_fill(share == 0, 0.0) * share).sum(1)
        torch.testing.assert_close(found.highest[:, number].double(), highest)
        torch.testing.assert_close(found.total[:, number].double(), share.sum(1), **close)
        torch.testing.assert_close(found.weighted[:, number].double(), weighted, **close)


@pytest.mark.parametrize("width", [40, 300, 5_000])
def test_excess_of_one_tail_over_another(width: int) -> None:
    torch.manual_seed(width)

    def tail() -> ScaledTail:
        logits = torch.randn(3, width)
        out = torch.randint(width, (3, 4))
        return ScaledTail(logits, logits.logsumexp(-1), torch.rand(3), out)

    own, other, ratio = tail(), tail(), torch.rand(3)
    columns = torch.arange(width).expand(3, -1)
    excess = (own.at(columns) - ratio[:, None] * other.at(columns)).relu()
    expected = torch.stack([part.sum(1) for part in excess.split(STRETCH, 1)], 1)
    torch.testing.assert_close(excess_sums(own, other, ratio, STRETCH), expected)


@pytest.mark.parametrize("width", [7, 130, 1003])
def test_streamed_draws_are_those_of_planes(width: int) -> None:
    """Rounding could move a draw to a neighbour. With these seeds it moves none."""
    torch.manual_seed(width)
    base = torch.randn(12, width) * 3
    later, streamed_later = None, None
    for sharpness in (1.0, 0.3, 4.0, 1.0):
        logits = (base + torch.randn(12, width) * 0.7) * sharpness
        labels, dice = torch.randint(width, (12,)), torch.rand(12, 6, dtype=torch.float64)
        plain, later = draw_together(logits, labels, dice, m=12, later=later)
        found, streamed_later = streamed.draw_streamed(
            logits, labels, dice, m=12, later=streamed_later
        )
        assert torch.equal(found.token_ids, plain.token_ids)
        assert torch.equal(found.top_log_probs, plain.top_log_probs)
        torch.testing.assert_close(found.entropy, plain.entropy)
        torch.testing.assert_close(found.label_log_prob, plain.label_log_prob)
        assert torch.equal(streamed_later.positions, later.positions)


def test_streamed_draws_say_what_is_not_finite() -> None:
    logits = torch.randn(3, 200)
    logits[0, 3], logits[1, 150] = torch.nan, torch.inf
    dice = torch.rand(3, 6, dtype=torch.float64)
    kept, _ = streamed.draw_streamed(logits, torch.zeros(3).long(), dice, m=12, later=None)
    assert kept.entropy.isfinite().tolist() == [False, False, True]


@pytest.fixture
def kernels_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU take the ways that a GPU takes, in chunks of few tokens."""
    monkeypatch.setattr(fused, "has_kernels", lambda _: True)
    monkeypatch.setattr(recording, "has_kernels", lambda _: True)
    monkeypatch.setattr(recording, "_STREAMED_ELEMENTS", 1_400)
    monkeypatch.setattr(tiles, "_CPU_ROWS", 2_000)


@pytest.mark.parametrize("tail", ["sample", "bucket"])
@pytest.mark.usefixtures("kernels_everywhere")
def test_divergences_and_gradients_by_kernels(tail: str) -> None:
    torch.manual_seed(0)
    divergence = FORWARD if tail == "sample" else Divergence("reverse", "bucket")
    make = make_targets if tail == "sample" else make_bins
    head = Head(make_head(300, 16, seed=0).weight.bfloat16())
    targets = make(20, 3, 5, 300)
    features = torch.randn(20, 16).bfloat16().float().requires_grad_()
    found = candidate_divergences(features, head, targets, divergence)
    exact = exactly(features)
    truth = reference_divergences(exact, wide(head), targets, divergence)
    torch.testing.assert_close(found.values.double(), truth.detach(), atol=2e-5, rtol=2e-5)
    matched = torch.arange(20) % 3
    ours = gradient_of(found.matched(matched).sum(), features).double()
    true = gradient_of(truth.gather(1, matched[:, None]).sum(), exact)
    # probabilities are rounded to bfloat16, as a product of bfloat16 rounds them
    assert (ours - true).norm() < 4e-3 * true.norm()


@pytest.mark.usefixtures("kernels_everywhere")
def test_all_sweeps_of_a_frozen_head_share_its_padding() -> None:
    head = frozen_head(Head(make_head(290, 16, seed=0).weight.bfloat16()), 290)
    features, ids = torch.randn(5, 16), torch.zeros(5, 1, 1, dtype=torch.long)
    held = [sweep_head(features, head, ids).head.weight.data_ptr() for _ in range(3)]
    assert held == [head.weight.data_ptr()] * 3


@pytest.mark.parametrize("has_weights", [False, True])
@pytest.mark.usefixtures("kernels_everywhere")
def test_cross_entropy_by_kernels(has_weights: bool) -> None:
    torch.manual_seed(0)
    weight = make_head(70, 16, seed=0).weight.bfloat16().requires_grad_()
    ids = torch.randint(70, (30, 4 if has_weights else 1))
    if has_weights:
        ids[:, 1] = ids[:, 0]  # an id may come twice
    weights = torch.rand(ids.shape) if has_weights else None
    features = torch.randn(30, 16).bfloat16().float().requires_grad_()
    total, log_probs = linear_soft_cross_entropy(features, Head(weight), ids, weights)
    exact, exact_weight = exactly(features), weight.detach().double().requires_grad_()
    plain = torch.ones(ids.shape) if weights is None else weights
    truth, true_probs = reference_soft_cross_entropy(exact, Head(exact_weight), ids, plain.double())
    torch.testing.assert_close(total.double(), truth, atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(log_probs.double(), true_probs.double(), atol=1e-4, rtol=1e-4)
    total.backward()
    truth.backward()
    for ours, true in ((features.grad, exact.grad), (weight.grad, exact_weight.grad)):
        assert ours is not None
        assert true is not None
        assert (ours.double() - true).norm() < 4e-3 * true.norm()


@pytest.mark.usefixtures("kernels_everywhere")
def test_a_record_by_kernels_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks of few tokens, and with a vocabulary that is no multiple of anything."""
    torch.manual_seed(0)
    head = Head(torch.randn(333, 24))
    features = [torch.randn(10, 24) for _ in range(3)]
    labels, dice = torch.randint(333, (10,)), torch.rand(10, 3, 6, dtype=torch.float64)

    def record() -> recording.SparseDistribution:
        order = torch.randperm(333, generator=torch.Generator().manual_seed(1))
        recorder = recording.TapRecorder(head, k=4, m=12, drawn_from="whole", order=order)
        return recorder.record(features, labels, dice)

    ours = record()
    monkeypatch.setattr(recording, "has_kernels", lambda _: False)
    plain = record()
    assert (ours.token_ids == plain.token_ids).all()
    assert (ours.top_log_probs == plain.top_log_probs).all()
    torch.testing.assert_close(torch.tensor(ours.entropy), torch.tensor(plain.entropy))
