"""A teacher that leaves almost nothing to the tail: stored in float16, its tail is uncertain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.objectives import Divergence, Kind, sparse_targets

K = 16
STUDENT_TAIL = 0.2


def _stored(tail: float, generator: np.random.Generator) -> tuple[SparseDistribution, Any]:
    """The k kept tokens as the cache gives them back, and their exact probabilities."""
    logits = generator.normal(size=K) * 1.5
    exact = np.exp(logits - np.logaddexp.reduce(logits)) * (1 - tail)
    kept = np.log(exact).astype(np.float16).astype(np.float32)
    distribution = SparseDistribution(
        token_ids=np.arange(K, dtype=np.int32)[None, None],
        top_log_probs=kept[None, None],
        entropy=np.zeros((1, 1), np.float32),
        label_log_prob=np.zeros((1, 1), np.float32),
    )
    return distribution, exact


def _errors(kind: Kind, tail: float) -> np.ndarray[Any, Any]:
    """Divergences from 300 stored teachers, less those from the exact bins, in nats."""
    generator = np.random.default_rng(0)
    student = np.full(K, (1 - STUDENT_TAIL) / K)
    log_q = torch.from_numpy(np.log(student).astype(np.float32))[None, None]
    found = []
    for _ in range(300):
        distribution, exact = _stored(tail, generator)
        targets = sparse_targets(distribution, "bucket")
        value = Divergence(kind, "bucket")(log_q, targets.weights, targets.entropy).item()
        bins, q = np.append(exact, tail), np.append(student, STUDENT_TAIL)
        mixture = {"js": (bins + q) / 2, "skewed": 0.1 * bins + 0.9 * q}.get(kind, q)
        to_mixture = (bins * np.log(bins / mixture)).sum()
        wanted = {
            "reverse": (q * np.log(q / bins)).sum(),
            "js": (to_mixture + (q * np.log(q / mixture)).sum()) / 2,
            "l2": np.square(bins - q).sum(),
        }.get(kind, to_mixture)
        found.append(value - wanted)
    return np.array(found)


@pytest.mark.parametrize(
    ("tail", "most"), [(1e-1, 0.01), (1e-2, 0.01), (1e-3, 0.12), (1e-4, 0.3), (1e-5, 0.7)]
)
def test_reverse_is_as_wrong_as_the_limits_say(tail: float, most: float) -> None:
    """A fifth of the student's mass is in the tail: docs/limits.md has these figures."""
    errors = _errors("reverse", tail)
    assert np.abs(errors).max() < most
    if tail <= 1e-5:
        assert errors.max() < 0, "a tail that rounding hides is never taken for one of nothing"


@pytest.mark.parametrize("kind", ["forward", "js", "skewed", "l2"])
def test_the_other_divergences_do_not_depend_on_a_small_tails_logarithm(kind: Kind) -> None:
    for tail in (1e-3, 1e-5):
        assert np.abs(_errors(kind, tail)).max() < 0.005
