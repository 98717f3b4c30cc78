"""Which samples are learned from: figures of a record, and a choice among samples by them.

Shapes: N response tokens laid end to end, n samples, L taps, S entries of a distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.recipe import SelectSection

__all__ = ["Choice", "choose_by_figure", "disagreement", "sample_figures"]

Floats = NDArray[np.float64]


def sample_figures(
    distribution: SparseDistribution, offsets: NDArray[np.int64], section: SelectSection, row: int
) -> Floats:
    """Return the figure of each sample, its mean over the sample's tokens, ``[n]``.

    A sample without tokens has NaN.

    Args:
        distribution: ``[N, L]``, the output last.
        offsets: ``[n + 1]``: sample i owns the tokens from ``offsets[i]`` to ``offsets[i + 1]``.
        section: names the figure.
        row: the place of the section's tap among the L.
    """
    if section.by == "teacher_loss":
        per_token = -distribution.label_log_prob[:, -1].astype(np.float64)
    elif section.by == "entropy":
        per_token = distribution.entropy[:, -1].astype(np.float64)
    else:
        per_token = disagreement(distribution[:, row], distribution[:, -1])
    lengths = np.diff(offsets)
    figures = np.full(len(lengths), np.nan)
    having = np.flatnonzero(lengths)
    if len(having):
        figures[having] = np.add.reduceat(per_token, offsets[having]) / lengths[having]
    return figures


def disagreement(tap: SparseDistribution, output: SparseDistribution) -> Floats:
    """Return ``1 − Σ min(p, q)`` between the entries that are recorded of both, ``[N]``.

    With draws alone, a tap keeps of the next tap's draws what a maximal coupling allows. For the
    tap below the output this is then an estimate of the total variation without bias. For a tap
    further below, some draws are lost on the way, so it lies higher.
    """
    own, other = tap.weights().astype(np.float64), output.weights().astype(np.float64)
    mine, theirs = np.zeros(own.shape), np.zeros(own.shape)
    for entry in range(own.shape[1]):  # S comparisons of whole arrays, without a loop over tokens
        mine += own[:, entry, None] * (tap.token_ids[:, entry, None] == tap.token_ids)
        theirs += other[:, entry, None] * (output.token_ids[:, entry, None] == tap.token_ids)
    shared = np.divide(theirs, mine, out=np.zeros_like(own), where=mine > 0)
    overlap: Floats = (own * np.minimum(shared, 1.0)).sum(1)
    return np.clip(1 - overlap, 0.0, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The samples that have a figure, ascending by it, and which stretch of them is chosen."""

    ranked: NDArray[np.int64]
    """Indices of the samples."""
    figures: Floats
    """Their figures."""
    chosen: slice
    """The stretch of both."""

    @property
    def kept(self) -> NDArray[np.int64]:
        """Indices of the chosen samples, ascending."""
        return np.sort(self.ranked[self.chosen])

    @property
    def unchosen(self) -> NDArray[np.int64]:
        """Indices of the others, ascending."""
        return np.sort(np.delete(self.ranked, self.chosen))

    def report(self) -> str:
        """Return how many are chosen and how many are not, with the ranges of their figures."""
        start, stop = self.chosen.start, self.chosen.stop
        parts = [self.figures[:start], self.figures[stop:]]
        others = " and ".join(f"{len(part):,} {_span(part)}" for part in parts if len(part))
        return (
            f"{stop - start:,} of {len(self.ranked):,} samples are chosen, "
            f"{_span(self.figures[self.chosen])}. Left out: {others or 'none'}"
        )


def choose_by_figure(figures: Floats, keys: NDArray[np.uint8], section: SelectSection) -> Choice:
    """Choose among the samples that have a figure.

    Args:
        figures: ``[n]``, NaN where a sample has none.
        keys: ``[n, 32]``, SHA-256 of each sample's content. It decides between equal figures, and
            the index does between equal contents.
        section: what to choose.
    """
    having = np.flatnonzero(~np.isnan(figures))
    names = np.ascontiguousarray(keys[having]).view("S32").ravel() if len(having) else having
    order = having[np.lexsort((having, names, figures[having]))]
    ranked: Any = figures[order]
    return Choice(order, ranked, _stretch(ranked, section))


def _stretch(ranked: Floats, section: SelectSection) -> slice:
    count = len(ranked)
    if section.keep is None:
        least, greatest = section.between or (None, None)
        start = 0 if least is None else int(np.searchsorted(ranked, least, "left"))
        stop = count if greatest is None else int(np.searchsorted(ranked, greatest, "right"))
        return slice(start, max(start, stop))
    kept = min(max(int(section.keep * count + 0.5), 1), count)
    start = {"lowest": 0, "middle": (count - kept) // 2, "highest": count - kept}[
        section.order or "middle"
    ]
    return slice(start, start + kept)


def _span(figures: Floats) -> str:
    return f"from {figures[0]:.3g} to {figures[-1]:.3g}" if len(figures) else "none"
