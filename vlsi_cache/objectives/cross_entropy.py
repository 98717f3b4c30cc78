"""Cross-entropy through a head that trains: no logits are kept, and none are computed twice.

For logits z = W h and q = softmax(z), the loss of a token with label y is ``log Σ exp z − z_y``.
Its gradient by the logits is ``q − e_y``, which is known as soon as the token's logits are. So each
chunk makes its three products in one go: the logits, and the gradients of features and head.

A target may be any weights on a few tokens. The gradient is then ``Σ_e w_e (q − e_id)``, for no
product more. Labels and a teacher's sparse record are learnt together in this way.

Shape suffixes: N tokens, D hidden size, V vocabulary, S entries of a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlsi_cache.models import Head
from vlsi_cache.objectives import fused, tiles

__all__ = ["linear_cross_entropy", "linear_soft_cross_entropy"]

_COMPARED = 16
"""Entries with which all others of a token are compared at a time."""


def linear_cross_entropy(features: Tensor, head: Head, labels: Tensor) -> Tensor:
    """Sum of cross-entropies in nats, 0-d. Gradients reach features *and* head.

    Args:
        features: ``[N, D]`` hidden states after the final norm.
        head: trainable head without padded rows.
        labels: ``[N]`` long.
    """
    return linear_soft_cross_entropy(features, head, labels[:, None])[0]


def linear_soft_cross_entropy(
    features: Tensor, head: Head, token_ids: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sum over tokens and entries of ``−weight · log q``. Gradients reach features *and* head.

    Args:
        features: ``[N, D]`` hidden states after the final norm.
        head: trainable head without padded rows.
        token_ids: ``[N, S]`` long, the entries of each target. An id may come twice.
        weights: ``[N, S]``, constants of any sum; 1 for the one entry of a label if None.

    Returns:
        The sum in nats, 0-d, and log q at the entries ``[N, S]``, nats, without a graph.
    """
    head = head.to_autocast()  # outside the function below, so that autograd undoes the cast
    sources = (features, head.weight, head.bias)
    # Under no_grad nothing is wanted, although the sources still require gradients.
    wanted = [
        torch.is_grad_enabled() and source is not None and source.requires_grad
        for source in sources
    ]
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        total, log_probs, gradients = _loss_and_gradients(
            features, head, token_ids, weights, wanted
        )
    result: Tensor = _KnownGradients.apply(total, gradients, *sources)
    return result, log_probs


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
    features_ND: Tensor,
    head: Head,
    ids_NS: Tensor,
    given_NS: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """The loss, log q at the ids, and as far as wanted the gradients of features, weight, bias."""
    dtype = tiles.accumulator(head.weight.dtype)
    sources = (features_ND, head.weight, head.bias)
    gradients = [
        torch.zeros_like(source, dtype=dtype) if source is not None and want else None
        for source, want in zip(sources, wanted, strict=True)
    ]
    total = torch.zeros((), dtype=dtype, device=features_ND.device)
    log_probs_NS = torch.zeros_like(ids_NS, dtype=dtype)
    weights_NS = torch.ones_like(log_probs_NS) if given_NS is None else given_NS.to(dtype)
    size = tiles.chunk_tokens(head.num_rows, features_ND.device)
    error_of, weight = _errors, head.weight
    if fused.serves(head):
        head = head.padded()
        error_of, weight = _fused_errors, head.aligned_weight()
    for part in tiles.chunks(len(features_ND), size):
        error_NV, log_probs_NS[part] = error_of(
            features_ND[part], head, ids_NS[part], None if given_NS is None else weights_NS[part]
        )
        total -= (weights_NS[part] * log_probs_NS[part]).sum()
        _add_gradients(gradients, part, features_ND[part], weight, error_NV)
    return total, log_probs_NS, gradients


def _errors(
    features_ND: Tensor, head: Head, ids_NS: Tensor, given_NS: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The gradient by the raw logits ``[N, V]``, and log q at the ids ``[N, S]``."""
    logits_NV = tiles.wide_product(features_ND, head.weight.T, tiles.operand_dtype(head.weight))
    if head.bias is not None:
        logits_NV += head.bias
    logits_NV = head.transform.apply(logits_NV)
    # The slope follows from the logits, which the next lines overwrite.
    slopes_NV = None if head.transform.is_identity else head.transform.derivative(logits_NV)
    chosen_NS = logits_NV.gather(1, ids_NS)
    probs_NV, log_mass_N1 = _softmax_in_place(logits_NV)
    error_NV = probs_NV  # turned into the gradient in place: one plane [N, V] serves for all
    if given_NS is not None:
        error_NV *= given_NS.sum(1, keepdim=True)
    lost_NS = torch.full_like(chosen_NS, -1.0) if given_NS is None else -given_NS
    error_NV.scatter_add_(1, ids_NS, lost_NS)
    if slopes_NV is not None:
        error_NV *= slopes_NV  # chain rule through the logit transform
    return error_NV, chosen_NS - log_mass_N1


def _fused_errors(
    features_ND: Tensor, head: Head, ids_NS: Tensor, given_NS: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same by kernels, ``[N, W]`` with 0 in the padding, in the head's dtype."""
    weight_WD = head.aligned_weight()
    logits_NW = tiles.wide_product(features_ND, weight_WD.T, weight_WD.dtype)
    chosen_NS = logits_NW.gather(1, ids_NS)
    scales_N = None if given_NS is None else given_NS.sum(1)
    error_NW, log_mass_N = fused.softmax_rows(logits_NW, head.num_rows, weight_WD.dtype, scales_N)
    log_probs_NS = chosen_NS - log_mass_N[:, None]
    # At the ids the difference q − w is taken before it is rounded. An id may come twice.
    given_NS = torch.ones_like(log_probs_NS) if given_NS is None else given_NS
    lost_NS = _sums_of_same(ids_NS, given_NS)
    exact_NS = log_probs_NS.exp() * given_NS.sum(1, keepdim=True) - lost_NS
    error_NW.scatter_(1, ids_NS, exact_NS.to(error_NW.dtype))
    return error_NW, log_probs_NS


def _sums_of_same(ids_NS: Tensor, values_NS: Tensor) -> Tensor:
    """For each entry, the sum of the values of all entries with its id, ``[N, S]``."""
    sums_NS = torch.zeros_like(values_NS)
    for part in tiles.chunks(ids_NS.shape[1], _COMPARED):  # all pairs would be S times as large
        is_same_NSP = ids_NS[:, :, None] == ids_NS[:, None, part]
        sums_NS += (is_same_NSP * values_NS[:, None, part]).sum(-1)
    return sums_NS


def _softmax_in_place(logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Turn logits into probabilities, in their own memory; return them and ``log Σ exp z``."""
    # log Σ exp z = max + log Σ exp(z − max), whose exponentials cannot overflow
    highest_N1 = logits_NV.amax(1, keepdim=True)
    probs_NV = logits_NV.sub_(highest_N1).exp_()
    mass_N1 = probs_NV.sum(1, keepdim=True)
    probs_NV /= mass_N1
    return probs_NV, highest_N1 + mass_N1.log()


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
        for rows in tiles.chunks(len(of_weight), size):
            of_weight[rows] += tiles.wide_product(error_NV[:, rows].T, features_ND, operand)
