"""Random heads, features and sparse targets of any shape."""

from __future__ import annotations

import torch
from torch import Tensor

from vlsi_cache.models import Head, LogitTransform
from vlsi_cache.objectives import SparseTargets

__all__ = ["exactly", "gradient_of", "make_bins", "make_head", "make_targets", "wide"]


def make_head(
    num_rows: int,
    hidden_size: int,
    *,
    bias: bool = False,
    softcap: float | None = None,
    scale: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Head:
    """A head of random rows."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(num_rows, hidden_size, generator=generator, dtype=dtype)
    offset = torch.randn(num_rows, generator=generator, dtype=dtype) if bias else None
    return Head(weight, offset, LogitTransform(scale, softcap))


def make_targets(num_tokens: int, num_candidates: int, entries: int, vocab: int) -> SparseTargets:
    """Entries that may repeat an id, with weights that sum to 1, as draws do."""
    generator = torch.Generator().manual_seed(1)
    shape = (num_tokens, num_candidates, entries)
    ids = torch.randint(vocab, shape, generator=generator)
    weights = torch.rand(shape, generator=generator)
    entropy = torch.rand(shape[:2], generator=generator)
    return SparseTargets(ids, weights / weights.sum(-1, keepdim=True), entropy)


def make_bins(
    num_tokens: int, num_candidates: int, entries: int, vocab: int, *, tail: float = 0.3
) -> SparseTargets:
    """Distinct ids whose weights leave ``tail`` for all others, with the bins' entropy."""
    generator = torch.Generator().manual_seed(2)
    shape = (num_tokens, num_candidates)
    ids = torch.rand(*shape, vocab, generator=generator).argsort(-1)[..., :entries]
    weights = torch.rand(*shape, entries, generator=generator) + 0.01
    weights = weights / weights.sum(-1, keepdim=True) * (1 - tail)
    rest = torch.full(shape, tail)
    entropy = -torch.xlogy(weights, weights).sum(-1) - torch.xlogy(rest, rest)
    return SparseTargets(ids, weights, entropy)


def exactly(features: Tensor) -> Tensor:
    """The same values in float64, a leaf of its own graph."""
    return features.detach().double().requires_grad_()


def wide(head: Head) -> Head:
    """The same head in float64."""
    bias = None if head.bias is None else head.bias.double()
    return Head(head.weight.double(), bias, head.transform)


def gradient_of(value: Tensor, source: Tensor) -> Tensor:
    """The derivative of a scalar."""
    (gradient,) = torch.autograd.grad(value, source)
    return gradient
