"""``SparseDistribution``: the few entries that stand for a whole vocabulary distribution."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["ENTROPY_STEP", "LABEL_STEP", "DrawnFrom", "SparseDistribution"]

DrawnFrom = Literal["rest", "whole"]
"""What the m draws beside k most likely tokens come from: the rest, or the whole distribution."""

ENTROPY_STEP: Final = 1 / 8
"""Nats between two neighbouring entropies of a record. Rounding at random adds a spread of at most
half a step to a divergence, and the draws of a token add 0.5 nats or more."""
LABEL_STEP: Final = 1 / 4
"""Nats between two neighbouring log-probabilities of labels in a record."""


@dataclass(frozen=True, slots=True, eq=False)
class SparseDistribution:
    """Vocabulary distributions, each as its k most likely tokens and m draws from the rest.

    With k = 0 there are draws alone, each of weight 1/m. The draws may also be from the whole
    distribution while k ≥ 1. Then those of the most likely tokens say nothing of their own.

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
    drawn_from: DrawnFrom = "rest"
    """What the draws come from if k ≥ 1. With k = 0 it is always ``rest``, which then is all."""

    def __post_init__(self) -> None:
        leading = self.entropy.shape
        sound = (
            self.label_log_prob.shape == leading
            and self.top_log_probs.ndim == self.token_ids.ndim == len(leading) + 1
            and self.top_log_probs.shape[:-1] == self.token_ids.shape[:-1] == leading
            and self.k <= self.token_ids.shape[-1] >= 1
            and (self.drawn_from == "rest" or (self.k >= 1 and self.m >= 1))
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
            drawn_from=self.drawn_from,
        )

    @staticmethod
    def concatenate(items: Sequence[SparseDistribution]) -> SparseDistribution:
        """Join one or more along the first axis.

        Raises:
            ValueError: there are none, or they differ in k, m, what was drawn from, or in their
                other axes.
        """
        found = sorted({item.k for item in items})
        if len(found) > 1:
            raise ValueError(f"distributions differ in k: {found}")
        kinds = sorted({item.drawn_from for item in items})
        if len(kinds) > 1:
            raise ValueError(f"distributions differ in what was drawn from: {kinds}")
        return SparseDistribution(
            token_ids=np.concatenate([item.token_ids for item in items]),
            top_log_probs=np.concatenate([item.top_log_probs for item in items]),
            entropy=np.concatenate([item.entropy for item in items]),
            label_log_prob=np.concatenate([item.label_log_prob for item in items]),
            drawn_from=items[0].drawn_from,
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

        With draws from the whole distribution, see ``_weights_of_whole``.
        """
        if self.drawn_from == "whole":
            return self._weights_of_whole()
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

    def is_beyond_top(self) -> NDArray[np.bool_]:
        """Whether each draw is of a token that is none of the k most likely, ``[*, m]``."""
        top, draws = self.token_ids[..., : self.k], self.token_ids[..., self.k :]
        beyond = np.ones(draws.shape, np.bool_)
        for rank in range(self.k):
            beyond &= draws != top[..., rank : rank + 1]
        return beyond

    def _weights_of_whole(self) -> NDArray[np.float32]:
        """Weights where some of the draws are of the k most likely tokens.

        Let M draws be of others, whose mass is t. M is m · t, rounded up or down at random. If
        m · t ≥ 1, the M draws share t. Otherwise M is 1 with probability m · t, and that draw
        weighs 1/m. The top is scaled to what remains of 1. Both ways the mean weight of an id
        outside the top is its probability. The mean weight of a top id i is p_i, as
        p_i / (1 − t) · (m · t · (1 − 1/m) + (1 − m · t)) = p_i.
        """
        beyond = self.is_beyond_top()
        count = beyond.sum(-1, keepdims=True)
        top = np.exp(self.top_log_probs.astype(np.float64))
        mass = top.sum(axis=-1, keepdims=True)
        tail = np.where(count > 0, np.clip(1 - mass, 1 / self.m, 1.0), 0.0)
        # The mass is 0 only if the tail is all there is.
        scale = np.divide(1 - tail, mass, out=np.zeros_like(mass), where=mass > 0)
        each = np.where(beyond, tail / np.maximum(count, 1), 0.0)
        return np.concatenate([top * scale, each], axis=-1).astype(np.float32)


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
