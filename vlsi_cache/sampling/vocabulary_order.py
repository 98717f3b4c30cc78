"""An order of the vocabulary in which neighbours mean similar things to the head."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

__all__ = ["vocabulary_order"]

_LEAF: Final = 16
"""Clusters of at most so many rows are not halved again."""
_DIMENSIONS: Final = 128
"""Rows are projected to so many random directions. That nearly keeps their distances
(Johnson and Lindenstrauss, 1984), and makes the work independent of the hidden size."""
_ITERATIONS: Final = 4
"""Rounds of power iteration. A rough direction is enough to halve a cluster along it."""


@torch.no_grad()
def vocabulary_order(weight: Tensor) -> Tensor:
    """Halve the rows along their widest direction, and the halves again, down to small clusters.

    Systematic draws in this order spread over different head rows. That lowers the variance of
    ``Σ weight · head row``, the term of the loss's gradient that the draws decide. Any order is
    unbiased.

    Args:
        weight: [V, D], the head's rows.

    Returns:
        [V] long, a permutation of the rows, on the weight's device.
    """
    # A fixed seed makes the order a function of the head alone. A resumed pass finds it again.
    generator = torch.Generator().manual_seed(0)
    hidden = weight.shape[1]
    rows = weight.float()
    if hidden > _DIMENSIONS:
        directions = torch.randn(hidden, _DIMENSIONS, generator=generator) / hidden**0.5
        rows = rows @ directions.to(rows.device)
    start = torch.randn(rows.shape[1], generator=generator).to(rows.device)
    clusters = [torch.arange(len(rows), device=rows.device)]
    done: list[Tensor] = []
    while clusters:
        cluster = clusters.pop()
        if len(cluster) <= _LEAF:
            done.append(cluster)
            continue
        depth = _centred(rows[cluster]) @ _widest(rows[cluster], start)
        ranked = cluster[depth.argsort(stable=True)]
        half = len(ranked) // 2
        # A stack gives what was put last first: so the first half, with all its parts, comes first.
        clusters += [ranked[half:], ranked[:half]]
    return torch.cat(done)


def _widest(rows: Tensor, start: Tensor) -> Tensor:
    """First principal direction of the rows, by power iteration with ``XᵀX``."""
    centred = _centred(rows)
    direction = start
    for _ in range(_ITERATIONS):
        direction = centred.T @ (centred @ direction)
        # Rows that are all equal have no direction, and 0 / 0 would be NaN.
        direction = direction / direction.norm().clamp_min(1e-30)
    return direction


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(0)
