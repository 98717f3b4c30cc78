"""Cross-entropy through a head that trains: no logits are kept, and none are computed twice.

For logits z = W h and q = softmax(z), the loss of a token with label y is ``log Σ exp z − z_y``.
Its gradient by the logits is ``q − e_y``, which is known as soon as the token's logits are. So each
chunk makes its three products in one go: the logits, and the gradients of features and head.

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


def linear_cross_entropy(features: Tensor, head: Head, labels: Tensor) -> Tensor:
    """Sum of cross-entropies in nats, 0-d. Gradients reach features *and* head.

    Args:
        features: ``[N, D]`` hidden states after the final norm.
        head: trainable head without padded rows.
        labels: ``[N]`` long.
    """
    head = head.to_autocast()  # outside the function below, so that autograd undoes the cast
    sources = (features, head.weight, head.bias)
    # Under no_grad nothing is wanted, although the sources still require gradients.
    wanted = [
        torch.is_grad_enabled() and source is not None and source.requires_grad
        for source in sources
    ]
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        total, gradients = _loss_and_gradients(features, head, labels, wanted)
    result: Tensor = _KnownGradients.apply(total, gradients, *sources)
    return result


class _KnownGradients(torch.autograd.Function):
    """A loss that is known already, together with its gradients."""

    @staticmethod
    def forward(ctx: Any, total, gradients, features, weight, bias):  # type: ignore[no-untyped-def]
        ctx.gradients = gradients
        ctx.dtypes = [None if value is None else value.dtype for value in (features, weight, bias)]
        return total.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad):  # type: ignore[no-untyped-def]
        # Scaled in place, because the head's gradient is as large as the head. So only once.
        gradients = ctx.gradients
        ctx.gradients = None
        if gradients is None:
            raise RuntimeError("linear_cross_entropy can be differentiated only once")
        scaled = (
            None if gradient is None else gradient.mul_(grad).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
        return None, None, *scaled


def _loss_and_gradients(
    features_ND: Tensor, head: Head, labels_N: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    """The loss, and the gradients of features, weight and bias as far as they are wanted."""
    dtype = tiles.accumulator(head.weight.dtype)
    operand = tiles.operand_dtype(head.weight)
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
        # The slope follows from the logits, which the next lines overwrite.
        slopes_NV = None if head.transform.is_identity else head.transform.derivative(logits_NV)
        label_N1 = labels_N[part, None]
        chosen_N = logits_NV.gather(1, label_N1)[:, 0]
        # log Σ exp z = max + log Σ exp(z − max), whose exponentials cannot overflow.
        highest_N1 = logits_NV.amax(1, keepdim=True)
        error_NV = logits_NV.sub_(highest_N1).exp_()
        mass_N1 = error_NV.sum(1, keepdim=True)
        total += ((highest_N1 + mass_N1.log())[:, 0] - chosen_N).sum()
        # In place, exp(z − max) turns into q, and q into q − e_y: one plane [N, V] serves for all.
        error_NV /= mass_N1
        error_NV.scatter_add_(1, label_N1, torch.full_like(mass_N1, -1.0))
        if slopes_NV is not None:
            error_NV *= slopes_NV  # chain rule through the logit transform
        _add_gradients(gradients, part, features_ND[part], head.weight, error_NV)
    return total, gradients


def _add_gradients(
    gradients: Sequence[Tensor | None],
    part: slice,
    features_ND: Tensor,
    weight_VD: Tensor,
    error_NV: Tensor,
) -> None:
    """Add one chunk's gradients, in place: ``error W`` of features, ``errorᵀ h`` of the weight."""
    operand = tiles.operand_dtype(weight_VD)
    of_features, of_weight, of_bias = gradients
    if of_bias is not None:
        of_bias += error_NV.sum(0)
    if of_features is not None:
        of_features[part] = tiles.wide_product(error_NV, weight_VD, operand)
    if of_weight is not None:
        # By rows of the head, so that no second tensor as large as the head exists.
        _, size = tiles.tile_shape(error_NV.device)
        for rows in tiles.chunks(len(weight_VD), size):
            of_weight[rows] += tiles.wide_product(error_NV[:, rows].T, features_ND, operand)
