"""Levels: the probabilities of the likeliest tokens as whole numbers below 256, and back.

The first level of a distribution is that of the mass beyond its k likeliest tokens. The level at
index i ≥ 1 is that of the token of rank i as a fraction of the tokens of ranks 0 … i together. So
for any levels no probability is negative, and the k never exceed 1 together.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FRACTIONS",
    "LEAST_LOG_PROB",
    "LEVEL_STEP",
    "TAILS",
    "are_levels",
    "find_levels",
    "log_probs_of",
]

Floats = NDArray[np.float64]

LEVEL_STEP: Final = 1 / 4
"""Nats between the logits of two neighbouring levels. Levels are rounded up or down at random, so
that means stay what they are."""
LEAST_LOG_PROB: Final = float(np.finfo(np.float16).min)
"""Nats that stand for a probability of 0."""


def _sigmoids(least: int, most: int) -> Floats:
    logits = np.arange(least / LEVEL_STEP, most / LEVEL_STEP + 1) * LEVEL_STEP
    values: Floats = 1 / (1 + np.exp(-logits))
    return values


TAILS: Final = np.concatenate([[0.0], _sigmoids(-11, 13), [1.0]])
"""The mass of each first level, ascending."""
FRACTIONS: Final = np.concatenate([[0.0], _sigmoids(-16, 0)])
"""The fraction of each other level, ascending. The least of several is at most half of them."""


def are_levels(values: NDArray[Any]) -> bool:
    """Report whether all values ``[*, k]`` are levels."""
    # few reductions, without an array of each comparison
    bounds = [len(TAILS), *[len(FRACTIONS)] * (values.shape[-1] - 1)]
    most = [int(values[..., rank].max(initial=0)) for rank in range(len(bounds))]
    return bool(values.min(initial=0) >= 0) and all(np.less(most, bounds))


def log_probs_of(levels: NDArray[Any]) -> NDArray[np.float32]:
    """Return the log-probabilities in nats of levels ``[*, k]``."""
    # Rank by rank, so that each is one run of memory.
    ranks = np.ascontiguousarray(np.moveaxis(levels, -1, 0))
    probabilities = np.empty(ranks.shape, np.float64)
    remaining = 1 - TAILS[ranks[0]]
    for rank in range(len(ranks) - 1, 0, -1):
        fraction = FRACTIONS[ranks[rank]]
        np.multiply(remaining, fraction, out=probabilities[rank])
        remaining *= 1 - fraction
    probabilities[0] = remaining
    floor = np.full(ranks.shape, LEAST_LOG_PROB)
    np.log(probabilities, out=floor, where=probabilities > 0)
    return np.ascontiguousarray(np.moveaxis(floor, 0, -1), np.float32)


def find_levels(log_probs: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the levels ``[*, k]`` of log-probabilities, the nearest where none is exact."""
    probabilities = np.exp(log_probs.astype(np.float64))
    together = probabilities.cumsum(-1)
    mass = together[..., -1:]
    fractions = np.divide(probabilities, together, out=np.zeros_like(together), where=together > 0)[
        ..., 1:
    ]
    return np.concatenate([_nearest(TAILS, 1 - mass), _nearest(FRACTIONS, fractions)], -1)


def _nearest(table: Floats, values: Floats) -> NDArray[np.uint8]:
    return np.searchsorted((table[1:] + table[:-1]) / 2, values).astype(np.uint8)
