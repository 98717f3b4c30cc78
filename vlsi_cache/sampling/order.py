"""An order of the vocabulary in which neighbours mean similar things to the head."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

__all__ = ["vocabulary_order"]

_LEAF: Final = 16
"""Groups no larger than this are in order."""
_DIMENSIONS: Final = 128
"""Rows are looked at in so many random directions, which keeps their distances."""
_ITERATIONS: Final = 4


@torch.no_grad()
def vocabulary_order(weight: Tensor) -> Tensor:
    """Halve the rows along their widest direction, and the halves again, down to small groups.

    Systematic draws in this order spread over what the head tells apart, which lowers the variance
    of ``Σ weight · head row``, the term of the loss's gradient that the draws decide. Any order is
    unbiased.

    Args:
        weight: [V, D], the head's rows.

    Returns:
        [V] long, a permutation of the rows, on the weight's device.
    """
    generator = torch.Generator().manual_seed(0)
    hidden = weight.shape[1]
    rows = weight.float()
    if hidden > _DIMENSIONS:
        directions = torch.randn(hidden, _DIMENSIONS, generator=generator) / hidden**0.5
        rows = rows @ directions.to(rows.device)
    start = torch.randn(rows.shape[1], generator=generator).to(rows.device)
    groups = [torch.arange(len(rows), device=rows.device)]
    done: list[Tensor] = []
    while groups:
        group = groups.pop()
        if len(group) <= _LEAF:
            done.append(group)
            continue
        ranked = group[(_centred(rows[group]) @ _widest(rows[group], start)).argsort(stable=True)]
        half = len(ranked) // 2
        groups += [ranked[half:], ranked[:half]]  # the stack gives the first half first
    return torch.cat(done)


def _widest(rows: Tensor, start: Tensor) -> Tensor:
    """First principal direction, by power iteration."""
    centred, direction = _centred(rows), start
    for _ in range(_ITERATIONS):
        direction = centred.T @ (centred @ direction)
        direction = direction / direction.norm().clamp_min(1e-30)
    return direction


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(0)
