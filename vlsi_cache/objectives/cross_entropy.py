"""Cross-entropy through a head that trains: no logits kept, none computed twice.

The gradient by the logits is known as soon as a row of them is, so each chunk's three products
(logits, and the gradients of features and head) are made in one go.

Shape suffixes: N tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlsi_cache.models import Head
from vlsi_cache.objectives import tiles

__all__ = ["linear_cross_entropy"]


def linear_cross_entropy(features: Tensor, head: Head, labels: Tensor, vocab_size: int) -> Tensor:
    """Sum of cross-entropies in nats, 0-d; gradients reach features *and* head.

    Args:
        features: ``[N, D]`` hidden states after the final norm.
        head: trainable head.
        labels: ``[N]`` long.
        vocab_size: rows of the head that are real tokens.
    """
    real = head.cut(vocab_size)
    # autograd says of every input that needs a gradient that it does, under no_grad too
    wanted = tuple(
        torch.is_grad_enabled() and value is not None and value.requires_grad
        for value in (features, real.weight, real.bias)
    )
    total: Tensor = _LinearCrossEntropy.apply(
        features, real.weight, real.bias, labels, real.transform, wanted
    )
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features, weight, bias, labels, transform, wanted):  # type: ignore[no-untyped-def]
        head = Head(weight, bias, transform)
        with torch.autocast(features.device.type, enabled=False):
            total, gradients = _loss_and_gradients(features, head, labels, wanted)
        ctx.gradients = gradients
        ctx.dtypes = [None if value is None else value.dtype for value in (features, weight, bias)]
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad):  # type: ignore[no-untyped-def]
        # scaled in place, since the head's gradient is as large as the head; so only once
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("linear_cross_entropy can be differentiated only once")
        scaled = (
            None if gradient is None else gradient.mul_(grad).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
        return *scaled, None, None, None


def _loss_and_gradients(
    features_ND: Tensor, head: Head, labels_N: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    """The loss, and the gradients by features, weight and bias as far as they are wanted."""
    dtype, operand = tiles.accumulator(head.weight.dtype), tiles.operand_dtype(head.weight)
    sources = (features_ND, head.weight, head.bias)
    gradients = [
        torch.zeros_like(source, dtype=dtype) if source is not None and want else None
        for source, want in zip(sources, wanted, strict=True)
    ]
    total = torch.zeros((), dtype=dtype, device=features_ND.device)
    for part in tiles.chunks(len(features_ND), tiles.chunk_tokens(head.num_rows)):
        logits_NV = tiles.wide_product(features_ND[part], head.weight.T, operand)
        if head.bias is not None:
            logits_NV += head.bias
        logits_NV = head.transform.apply(logits_NV)
        slopes_NV = None if head.transform.is_identity else head.transform.derivative(logits_NV)
        label_N1 = labels_N[part, None]
        chosen_N = logits_NV.gather(1, label_N1)[:, 0]
        highest_N1 = logits_NV.amax(1, keepdim=True)
        error_NV = logits_NV.sub_(highest_N1).exp_()
        mass_N1 = error_NV.sum(1, keepdim=True)
        total += ((highest_N1 + mass_N1.log())[:, 0] - chosen_N).sum()
        error_NV /= mass_N1
        error_NV.scatter_add_(1, label_N1, torch.full_like(mass_N1, -1.0))
        if slopes_NV is not None:
            error_NV *= slopes_NV
        _add_gradients(gradients, part, features_ND[part], head.weight, error_NV, operand)
    return total, gradients


def _add_gradients(
    gradients: list[Tensor | None],
    part: slice,
    features_ND: Tensor,
    weight_VD: Tensor,
    error_NV: Tensor,
    operand: torch.dtype,
) -> None:
    of_features, of_weight, of_bias = gradients
    if of_bias is not None:
        of_bias += error_NV.sum(0)
    if of_features is not None:
        of_features[part] = tiles.wide_product(error_NV, weight_VD, operand)
    if of_weight is not None:
        _, size = tiles.tile_shape(error_NV.device)
        for rows in tiles.chunks(len(weight_VD), size):  # no second tensor as large as the head
            of_weight[rows] += tiles.wide_product(error_NV[:, rows].T, features_ND, operand)
