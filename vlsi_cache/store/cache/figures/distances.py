"""``Distances``: how far the taps' records of the same tokens lie from one another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.store.shards.records import ShardRecord

__all__ = ["Distances", "compared_share"]

_MOST_TOKENS: Final = 2**16
"""Tokens that are compared, about. A mean over so many errs by some thousandths."""
_MOST_WORK: Final = 2**30
"""Pairs of taps times entries of all compared tokens. Many taps compare fewer tokens."""
_FEWEST_TOKENS: Final = 64
"""With fewer the distances would say nothing."""
_BLOCK_ENTRIES: Final = 2**18
"""Entries that are compared at once."""


def compared_share(num_tokens: int, num_taps: int, num_entries: int) -> float:
    """Return the share of a cache's tokens whose taps are compared: 1 for all, 0 for none.

    Args:
        num_tokens: response tokens that are read.
        num_taps: taps of a token.
        num_entries: entries of a tap.
    """
    most = min(_MOST_TOKENS, _MOST_WORK // (num_taps**2 * num_entries))
    if num_tokens <= most:
        return 1.0
    return most / num_tokens if most >= _FEWEST_TOKENS else 0.0


class Distances:
    """Sums over tokens of the total variation between each two taps' records.

    The total variation is half the sum of ``|w_i − w_j|`` over the entries' weights. The weights
    are unbiased, and an absolute value is convex. So the mean is no less than the total variation
    of the whole distributions. Maximal coupling makes it equal for neighbouring taps of a record of
    draws alone (``vlsi_cache/sampling/draws.py``).

    Args:
        num_taps: taps of a record, L.
        share: share of the tokens that are compared.
    """

    def __init__(self, num_taps: int, share: float) -> None:
        self.num_taps = num_taps
        self.share = share
        self.num_tokens = 0
        self._sums = np.zeros((num_taps, num_taps))
        self._token_squares = np.zeros((num_taps, num_taps))
        self._squares = np.zeros((num_taps, num_taps))
        self._products = np.zeros((num_taps, num_taps))
        self._square_counts = 0.0

    def add(self, record: ShardRecord) -> None:
        """Compare the taps at the record's tokens, or at some that are chosen by its contents."""
        chosen = record.distribution
        if self.share < 1:
            seed = int.from_bytes(record.keys[:1].tobytes(), "little")
            random = np.random.default_rng(seed).random(record.num_tokens)
            chosen = chosen[np.flatnonzero(random < self.share)]
        total = np.zeros((self.num_taps, self.num_taps))
        for row, tokens in _distances(chosen):
            total[row, row:] += tokens.sum(1)
            self._token_squares[row, row:] += (tokens**2).sum(1)
        self._sums += total
        self._squares += total**2
        self._products += total * len(chosen)
        self._square_counts += float(len(chosen) ** 2)
        self.num_tokens += len(chosen)

    def merge(self, other: Distances) -> None:
        """Add what another has counted."""
        self.num_tokens += other.num_tokens
        self._sums += other._sums
        self._token_squares += other._token_squares
        self._squares += other._squares
        self._products += other._products
        self._square_counts += other._square_counts

    def means(self, row: int) -> tuple[float, ...]:
        """Return the mean distance of a tap to each; nothing if no token was compared."""
        return tuple(_whole(self._means())[row].tolist()) if self.num_tokens else ()

    def errors(self, row: int, *, num_groups: int, num_groups_total: int) -> tuple[float, ...]:
        """Return the standard errors of the means; nothing if all tokens of the cache were read.

        Args:
            row: the tap's place.
            num_groups: groups of samples that were added, chosen at random. 0 if all were.
            num_groups_total: groups among which they were chosen.
        """
        count, means = self.num_tokens, self._means() if self.num_tokens else self._sums
        if num_groups > 1 and count:
            # a ratio of sums over groups, as in ``Tally.standard_error``
            deviations = self._squares - 2 * means * self._products + means**2 * self._square_counts
            scale = (1 - num_groups / num_groups_total) * num_groups / (num_groups - 1)
        elif self.share < 1 and count > 1:
            # tokens chosen one by one, from all of them
            deviations = self._token_squares - count * means**2
            scale = (1 - self.share) * count / (count - 1)
        else:
            return ()
        return tuple(_whole(np.sqrt(np.maximum(deviations, 0) * scale) / count)[row].tolist())

    def _means(self) -> NDArray[np.float64]:
        return self._sums / self.num_tokens


def _distances(distribution: SparseDistribution) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield each tap's distances to itself and to the taps after it, ``[taps, tokens]``.

    The tokens come in blocks, so a tap comes once per block.
    """
    num_taps, num_entries = distribution.token_ids.shape[1:]
    size = max(1, _BLOCK_ENTRIES // (num_taps * num_entries))
    for first in range(0, len(distribution), size):
        weights, starts = _pooled(distribution[first : first + size])
        for row in range(num_taps):
            apart = np.abs(weights[row:] - weights[row])
            yield row, np.add.reduceat(apart, starts, axis=1) / 2


def _pooled(block: SparseDistribution) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the weight of each distinct id of a token at each tap, and each token's first id.

    Returns:
        ``[taps, ids]``, all tokens' ids end to end, and ``[tokens]``.
    """
    num_tokens, num_taps, num_entries = block.token_ids.shape
    tokens = np.arange(num_tokens, dtype=np.int64)[:, None, None] << 32
    ids, place = np.unique((tokens + block.token_ids).ravel(), return_inverse=True)
    taps = np.tile(np.repeat(np.arange(num_taps), num_entries), num_tokens)
    weights = np.bincount(
        taps * len(ids) + place,
        weights=block.weights().ravel(),
        minlength=num_taps * len(ids),
    )
    starts = np.searchsorted(ids >> 32, np.arange(num_tokens))
    return weights.astype(np.float64).reshape(num_taps, len(ids)), starts


def _whole(upper: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the symmetric matrix of an upper triangle without a diagonal."""
    return np.triu(upper, 1) + np.triu(upper, 1).T
