"""``Tally``: running sums and counts over the samples of a cache, in constant memory."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from vlsi_cache.distribution import ENTROPY_STEP, LABEL_STEP
from vlsi_cache.store.cache.figures.distances import Distances
from vlsi_cache.store.cache.figures.summary import LengthBin, Lengths, Quantiles, SampleFigures
from vlsi_cache.store.shards.layout import CODE_HOLE
from vlsi_cache.store.shards.records import ShardRecord

__all__ = ["MEASURES", "Measure", "Tally"]

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Measure = Literal[
    "entropy_nats",
    "captured_mass",
    "label_log_prob_nats",
    "agreement_with_final",
    "agreement_with_label",
    "label_in_record",
]
MEASURES: Final[tuple[Measure, ...]] = (
    "entropy_nats",
    "captured_mass",
    "label_log_prob_nats",
    "agreement_with_final",
    "agreement_with_label",
    "label_in_record",
)
"""Figures of a token and tap whose means are taken."""

_ADDED: Final = (
    *("num_tokens", "num_added", "_sums", "_squares", "_products", "_square_lengths"),
    *("_entropies", "_label_log_probs", "_agreements", "_common"),
)
_LEVELS: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
_MOST_BINS: Final = 24
_NAMED: Final = 8
"""Samples that are named at either end."""
_FRACTIONS: Final = 1000
"""Steps of a fraction whose quantiles are taken."""


class Tally:
    """Sums, squares and counts that grow by a part of a shard, or by one group of samples.

    Args:
        num_taps: taps of a record, L.
        compared: share of the tokens at which the taps are compared with one another.
    """

    def __init__(self, num_taps: int, compared: float = 1.0) -> None:
        self.num_taps = num_taps
        self.distances = Distances(num_taps, compared)
        self.num_samples = 0
        self.num_tokens = 0
        self.num_added = 0
        self.failures: dict[str, str] = {}
        self._sums = np.zeros((len(MEASURES), num_taps))
        self._squares = np.zeros((len(MEASURES), num_taps))
        self._products = np.zeros((len(MEASURES), num_taps))
        self._square_lengths = 0.0
        self._entropies = np.zeros((num_taps, CODE_HOLE), np.int64)
        self._label_log_probs = np.zeros((num_taps, CODE_HOLE), np.int64)
        self._agreements = np.zeros((num_taps, _FRACTIONS + 1), np.int64)
        self._common = np.zeros((num_taps, num_taps), np.int64)
        self._lengths: Counter[int] = Counter()
        self._certain: list[tuple[float, int, SampleFigures]] = []
        self._uncertain: list[tuple[float, int, SampleFigures]] = []

    def add(self, record: ShardRecord) -> None:
        """Count the samples of a part of a shard, or a group that was chosen together."""
        rows = np.flatnonzero(np.diff(record.offsets))
        if len(rows):
            top = record.distribution.most_likely()[0]
            sums = np.stack(
                [
                    np.add.reduceat(values, record.offsets[rows], axis=0, dtype=np.float64)
                    for values in _measures(record, top)
                ]
            )
            self._add_sums(sums, np.diff(record.offsets)[rows])
            self._add_counts(record, top)
            if self.distances.share:
                self.distances.add(record)
            self._name(record, rows, sums[..., -1])
        self.num_tokens += record.num_tokens
        self.num_samples += len(record)
        self.num_added += 1
        self.failures |= {record.sample_ids[row]: why for row, why in record.failures.items()}

    def merge(self, other: Tally) -> None:
        """Add what another has counted of the samples after this one's."""
        for name in _ADDED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.distances.merge(other.distances)
        self._lengths.update(other._lengths)
        self.failures |= other.failures
        for heap, others in (
            (self._certain, other._certain),
            (self._uncertain, other._uncertain),
        ):
            for value, order, figures in others:
                _keep(heap, (value, order - self.num_samples, figures))
        self.num_samples += other.num_samples

    def mean(self, measure: Measure, row: int) -> float:
        """Return a mean over tokens."""
        return float(self._sums[MEASURES.index(measure), row]) / self.num_tokens + 0.0  # never −0

    def standard_error(self, measure: Measure, row: int, num_groups_total: int) -> float:
        """Return the standard error of a mean over at least 2 groups, chosen at random.

        Each ``add`` was a group. The tokens of a sample are alike, and so are neighbours, so that
        groups are counted and not tokens. The mean is a ratio: the sum over the chosen groups, over
        the sum of their lengths.

        Args:
            measure: the figure.
            row: the tap's place.
            num_groups_total: groups among which those counted were chosen.
        """
        number, count = MEASURES.index(measure), self.num_added
        ratio = self.mean(measure, row)
        deviations = (
            self._squares[number, row]
            - 2 * ratio * self._products[number, row]
            + ratio**2 * self._square_lengths
        )
        remaining = 1 - count / num_groups_total
        variance = max(deviations, 0.0) * remaining * count / (count - 1)
        return float(np.sqrt(variance) / self.num_tokens)

    def entropy_quantiles(self, row: int) -> Quantiles:
        """Return quantiles over tokens. Entropies are stored in steps, so they are exact."""
        return _quantiles(
            self._entropies[row], np.arange(CODE_HOLE, dtype=np.float64) * ENTROPY_STEP
        )

    def label_log_prob_quantiles(self, row: int) -> Quantiles:
        """Return quantiles over tokens. The values are stored in steps, so they are exact."""
        counts = self._label_log_probs[row, ::-1]
        return _quantiles(counts, np.arange(CODE_HOLE, dtype=np.float64)[::-1] * -LABEL_STEP + 0.0)

    def agreement_quantiles(self, row: int) -> Quantiles:
        """Return quantiles over samples, to a thousandth."""
        return _quantiles(self._agreements[row], np.arange(_FRACTIONS + 1) / _FRACTIONS)

    def agreement_with_taps(self, row: int) -> tuple[float, ...]:
        """Return the share of tokens at which each tap's most likely token is this one's."""
        return tuple((self._common[row] / self.num_tokens).tolist())

    def lengths(self) -> Lengths:
        """Return the response tokens per sample."""
        values = np.array(sorted(self._lengths), np.int64)
        counts = np.array([self._lengths[int(value)] for value in values], np.int64)
        return Lengths(
            shortest=int(values[0]),
            longest=int(values[-1]),
            mean=float((values * counts).sum() / counts.sum()),
            quantiles=_quantiles(counts, values.astype(np.float64)),
            bins=tuple(_bins(values, counts)),
        )

    def most_certain(self) -> tuple[SampleFigures, ...]:
        """Return the samples of the least mean entropy, ascending."""
        return tuple(figures for _, _, figures in sorted(self._certain, reverse=True))

    def least_certain(self) -> tuple[SampleFigures, ...]:
        """Return the samples of the greatest mean entropy, descending."""
        return tuple(figures for _, _, figures in sorted(self._uncertain, reverse=True))

    def _add_sums(self, sums: Floats, lengths: Counts) -> None:
        """Add sums over the tokens of each sample, ``[measures, samples, taps]``."""
        together, length = sums.sum(1), float(lengths.sum())
        self._sums += together
        self._squares += together**2
        self._products += together * length
        self._square_lengths += length**2
        self._lengths.update(lengths.tolist())
        agreements = sums[MEASURES.index("agreement_with_final")] / lengths[:, None]
        self._agreements += _count(agreements * _FRACTIONS, _FRACTIONS + 1)

    def _add_counts(self, record: ShardRecord, top: NDArray[np.int32]) -> None:
        distribution = record.distribution
        self._entropies += _count(distribution.entropy / ENTROPY_STEP, CODE_HOLE)
        self._label_log_probs += _count(distribution.label_log_prob / -LABEL_STEP, CODE_HOLE)
        by_tap = np.ascontiguousarray(top.T)
        for row, ids in enumerate(by_tap):
            common = np.count_nonzero(by_tap[row:] == ids, axis=1)
            self._common[row, row:] += common
            self._common[row + 1 :, row] += common[1:]

    def _name(self, record: ShardRecord, rows: Counts, sums: Floats) -> None:
        """Keep the samples at either end. Those that come first win among equals."""
        entropies, _, label_log_probs, _, on_top, _ = sums / np.diff(record.offsets)[rows]
        for place in _ends(entropies):
            row = int(rows[place])
            figures = SampleFigures(
                sample_id=record.sample_ids[row],
                key=record.keys[row].tobytes().hex(),
                num_tokens=int(record.offsets[row + 1] - record.offsets[row]),
                entropy_nats=float(entropies[place]),
                label_log_prob_nats=float(label_log_probs[place]) + 0.0,  # never −0
                agreement_with_label=float(on_top[place]),
            )
            order = -(self.num_samples + row)
            _keep(self._certain, (-figures.entropy_nats, order, figures))
            _keep(self._uncertain, (figures.entropy_nats, order, figures))


def _measures(record: ShardRecord, top: NDArray[np.int32]) -> Iterator[NDArray[np.generic]]:
    """Yield each measure, ``[tokens, taps]``, in the order of ``MEASURES``."""
    distribution, label = record.distribution, record.response_ids[:, None]
    yield distribution.entropy
    yield distribution.captured_mass()
    yield distribution.label_log_prob
    yield top == top[:, -1:]
    yield top == label
    ids = distribution.token_ids
    found = np.zeros(distribution.shape, np.bool_)
    # a reduction over so short an axis takes several times as long
    found.reshape(-1)[np.flatnonzero(ids == label[..., None]) // ids.shape[-1]] = True
    yield found


def _count(steps: NDArray[np.floating], num_steps: int) -> Counts:
    """Count whole numbers of steps, ``[*, taps]``, as ``[taps, num_steps]``."""
    num_taps = steps.shape[-1]
    codes = np.clip(np.rint(steps), 0, num_steps - 1).astype(np.int64)
    places = codes + np.arange(num_taps) * num_steps
    counted = np.bincount(places.ravel(), minlength=num_taps * num_steps)
    return counted.reshape(num_taps, num_steps)


def _quantiles(counts: Counts, values: Floats) -> Quantiles:
    """Return quantiles of values that ascend and of how often each occurs."""
    reached = counts.cumsum()
    wanted = np.ceil(np.multiply(_LEVELS, reached[-1]) - 1e-9)
    found = values[np.searchsorted(reached, np.maximum(wanted, 1))].tolist()
    return Quantiles(**dict(zip(("p05", "p25", "p50", "p75", "p95"), found, strict=True)))


def _bins(values: Counts, counts: Counts) -> Iterator[LengthBin]:
    width = -(-int(values[-1] - values[0] + 1) // _MOST_BINS)
    for first in range(int(values[0]), int(values[-1]) + 1, width):
        inside = (values >= first) & (values < first + width)
        yield LengthBin(first=first, last=first + width - 1, num_samples=int(counts[inside].sum()))


def _ends(entropies: Floats) -> list[int]:
    """Return the places of the least and the greatest values, each place once."""
    order = np.argsort(entropies, kind="stable")
    greatest = np.argsort(-entropies, kind="stable")
    return sorted({*order[:_NAMED].tolist(), *greatest[:_NAMED].tolist()})


def _keep(
    heap: list[tuple[float, int, SampleFigures]], item: tuple[float, int, SampleFigures]
) -> None:
    if len(heap) < _NAMED:
        heapq.heappush(heap, item)
    else:
        heapq.heappushpop(heap, item)
