"""Comparing what two losses ask of the same weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["compare_gradients"]


def compare_gradients(
    first: Tensor, second: Tensor, trained: Sequence[Tensor]
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Return the norms of two losses' gradients by all these weights, and their cosine, 0-d each.

    The losses' graphs stay.
    """
    one, other = (_flat_gradient(loss, trained) for loss in (first, second))
    return (one.norm(), other.norm()), F.cosine_similarity(one, other, dim=0)


def _flat_gradient(loss: Tensor, trained: Sequence[Tensor]) -> Tensor:
    """Return the gradient of a loss by all these weights, laid flat; its graph stays."""
    found = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
    parts = [
        torch.zeros_like(weight) if part is None else part
        for weight, part in zip(trained, found, strict=True)
    ]
    return torch.cat([part.flatten().float() for part in parts])
