"""``SparseDistribution``: the few entries that stand for a whole vocabulary distribution."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["ENTROPY_STEP", "LABEL_STEP", "SparseDistribution"]

ENTROPY_STEP: Final = 1 / 8
"""Nats between two neighbouring entropies of a record. Rounding at random adds a spread of at most
half a step to a divergence, and the draws of a token add 0.5 nats or more."""
LABEL_STEP: Final = 1 / 4
"""Nats between two neighbouring log-probabilities of labels in a record."""


@dataclass(frozen=True, slots=True, eq=False)
class SparseDistribution:
    """Vocabulary distributions, each as its k most likely tokens and m draws from the rest.

    With k = 0 there are draws alone, each of weight 1/m.

    All arrays share a leading shape ``[*]``, such as ``[N]`` tokens or ``[N, L]`` tokens and taps.
    Log-probabilities are natural logarithms (nats) of the softmax over the whole vocabulary. They
    are never renormalised (Sparse Logit Sampling, ACL 2025).

    Raises:
        ValueError: the arrays' shapes contradict one another.
    """

    token_ids: NDArray[np.int32]
    """``[*, k + m]``: the k most likely tokens, the likeliest first, then the m draws."""
    top_log_probs: NDArray[np.float32]
    """``[*, k]``, nats: log-probabilities of the k most likely tokens."""
    entropy: NDArray[np.float32]
    """``[*]``, nats: entropy of the whole distribution."""
    label_log_prob: NDArray[np.float32]
    """``[*]``, nats: log-probability of the token that the data holds."""

    def __post_init__(self) -> None:
        leading = self.entropy.shape
        sound = (
            self.label_log_prob.shape == leading
            and self.top_log_probs.ndim == self.token_ids.ndim == len(leading) + 1
            and self.top_log_probs.shape[:-1] == self.token_ids.shape[:-1] == leading
            and self.k <= self.token_ids.shape[-1] >= 1
        )
        if not sound:
            raise ValueError(
                f"arrays of a sparse distribution disagree: token_ids {self.token_ids.shape}, "
                f"top_log_probs {self.top_log_probs.shape}, entropy {leading}, "
                f"label_log_prob {self.label_log_prob.shape}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Leading shape ``[*]``."""
        return self.entropy.shape

    @property
    def k(self) -> int:
        """Number of most likely tokens kept."""
        return int(self.top_log_probs.shape[-1])

    @property
    def m(self) -> int:
        """Number of tokens drawn from the rest."""
        return int(self.token_ids.shape[-1]) - self.k

    def __len__(self) -> int:
        return len(self.entropy)

    def __getitem__(self, index: Any) -> SparseDistribution:
        """Index the leading axes only. A slice gives views, not copies."""
        return SparseDistribution(
            token_ids=self.token_ids[index],
            top_log_probs=self.top_log_probs[index],
            entropy=np.asarray(self.entropy[index]),
            label_log_prob=np.asarray(self.label_log_prob[index]),
        )

    @staticmethod
    def concatenate(items: Sequence[SparseDistribution]) -> SparseDistribution:
        """Join one or more along the first axis.

        Raises:
            ValueError: there are none, or they differ in k, m or in their other axes.
        """
        found = sorted({item.k for item in items})
        if len(found) > 1:
            raise ValueError(f"distributions differ in k: {found}")
        return SparseDistribution(
            token_ids=np.concatenate([item.token_ids for item in items]),
            top_log_probs=np.concatenate([item.top_log_probs for item in items]),
            entropy=np.concatenate([item.entropy for item in items]),
            label_log_prob=np.concatenate([item.label_log_prob for item in items]),
        )

    def captured_mass(self) -> NDArray[np.float32]:
        """Probability of the k most likely tokens together, ``[*]`` float32 in [0, 1]."""
        mass = np.exp(self.top_log_probs.astype(np.float64)).sum(axis=-1)
        return np.asarray(np.minimum(mass, 1.0), dtype=np.float32)

    def most_likely(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The likeliest token and its probability, both ``[*]``.

        With k = 0 they are estimates: the id drawn most often, and its share of the draws. Among
        ids drawn equally often, the lowest counts.
        """
        if self.k:
            return self.token_ids[..., 0], np.exp(self.top_log_probs[..., 0])
        often, most = _longest_runs(np.sort(self.token_ids, axis=-1))
        return most, np.asarray(often / np.float32(self.m), dtype=np.float32)

    def weights(self) -> NDArray[np.float32]:
        """Weights of the entries, ``[*, k + m]`` float32, each row summing to 1.

        A top entry weighs its probability, and each draw an equal share of the remaining mass. So
        ``Σ weight · f(token)`` is an unbiased estimate of ``E_p[f]`` (Horvitz-Thompson). If no mass
        remains, because m is 0 or because rounding puts the top above 1, the top is scaled to sum
        to 1. With m = 0 that is the renormalised top-k, which is biased (Sparse Logit Sampling,
        ACL 2025).
        """
        top = np.exp(self.top_log_probs.astype(np.float64))
        mass = top.sum(axis=-1, keepdims=True)
        if self.m == 0:
            # All k log-probabilities may be at the format's floor. Then the weights are equal.
            empty = mass == 0.0
            return np.where(empty, 1.0 / self.k, top / np.where(empty, 1.0, mass)).astype(
                np.float32
            )
        top /= np.maximum(mass, 1.0)
        rest = np.maximum(1.0 - mass, 0.0) / self.m
        tail = np.broadcast_to(rest, (*self.shape, self.m))
        return np.concatenate([top, tail], axis=-1).astype(np.float32)


def _longest_runs(ids: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the length of the longest run of equal ids, the first of several, and its id.

    Args:
        ids: ``[*, m]``, ascending along the last axis.
    """
    # Column after column: m steps of whole arrays, without a loop over tokens.
    columns = np.ascontiguousarray(np.moveaxis(ids, -1, 0))
    most = columns[0].copy()
    run = np.ones(most.shape, np.int32)
    often = run.copy()
    for before, column in itertools.pairwise(columns):
        run *= column == before
        run += 1
        longer = run > often
        np.copyto(most, column, where=longer)
        np.maximum(often, run, out=often)
    return often, most
