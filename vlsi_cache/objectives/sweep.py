"""One pass over the vocabulary that serves every candidate target (METHOD §6).

``∂KL/∂z = q − t``: the dense part ``E_q[W]`` and the log-sum-exp do not depend on the target, so
one sweep computes both, gathers the logits at every candidate's ids, and the gradient of whichever
candidate is matched later is the dense part less a sparse correction. No logits outlive a chunk.

Shape suffixes: N tokens, D hidden size, V vocabulary, C candidates, S entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlsi_cache.models import Head
from vlsi_cache.objectives.targets import SparseTargets

__all__ = ["CHUNK_ELEMENTS", "Sweep", "chunk_tokens", "matched_divergence", "sweep_head"]

CHUNK_ELEMENTS = 1 << 24
"""Logits alive at once, in elements: 64 MiB in float32, whatever N and V."""


def chunk_tokens(vocab_size: int) -> int:
    """Tokens per chunk such that its logits hold ``CHUNK_ELEMENTS`` at most."""
    return max(1, CHUNK_ELEMENTS // vocab_size)


@dataclass(frozen=True, slots=True)
class Sweep:
    """What one pass of N tokens over the vocabulary leaves behind."""

    features: Tensor
    """``[N, D]``, the swept hidden states, with their graph."""
    head: Head
    """The head they were swept through."""
    targets: SparseTargets
    """The candidates."""
    chosen_logits: Tensor
    """``[N, C, S]`` float32, logits at the candidates' ids."""
    dense_gradient: Tensor
    """``[N, D]`` float32, ``E_q[∂z/∂features]``."""
    divergences: Tensor
    """``[N, C]`` float32, nats."""


@torch.no_grad()
def sweep_head(features: Tensor, head: Head, targets: SparseTargets, vocab_size: int) -> Sweep:
    """Read ``features`` through the head once, for every candidate.

    Args:
        features: ``[N, D]`` hidden states after the final norm.
        head: frozen head; it gets no gradient.
        targets: N tokens, C candidates, S entries.
        vocab_size: V, rows of the head that are real tokens; padded rows never enter.
    """
    num_tokens = len(features)
    log_normalizer = features.new_empty(num_tokens, dtype=torch.float32)
    dense_gradient = features.new_empty(features.shape, dtype=torch.float32)
    chosen_logits = torch.empty_like(targets.weights)
    real = head.cut(vocab_size)
    step = chunk_tokens(vocab_size)
    for start in range(0, num_tokens, step):
        part = slice(start, start + step)
        logits_NV = real.logits(features[part]).float()
        ids = targets.token_ids[part]
        chosen_logits[part] = logits_NV.gather(1, ids.flatten(1)).view(ids.shape)
        log_normalizer[part] = torch.logsumexp(logits_NV, dim=1)
        mean_NV = (logits_NV - log_normalizer[part, None]).exp_()
        if not head.transform.is_identity:
            mean_NV *= head.transform.derivative(logits_NV)
        dense_gradient[part] = (mean_NV.to(real.weight.dtype) @ real.weight).float()
    cross_entropy = log_normalizer[:, None] - (targets.weights * chosen_logits).sum(-1)
    return Sweep(
        features=features,
        head=head,
        targets=targets,
        chosen_logits=chosen_logits,
        dense_gradient=dense_gradient,
        divergences=cross_entropy - targets.entropy,
    )


def matched_divergence(sweep: Sweep, matched: Tensor, token_weights: Tensor) -> Tensor:
    """Weighted sum over tokens of the matched candidate's divergence, 0-d, differentiable.

    The gradient reaches ``sweep.features`` only and is exact.

    Args:
        sweep: what ``sweep_head`` left.
        matched: ``[N]`` long, each token's candidate.
        token_weights: ``[N]`` float32, e.g. 1/N each for the mean.
    """
    with torch.no_grad():
        pick = matched[:, None]
        entry = pick[..., None].expand(-1, 1, sweep.targets.token_ids.shape[2])
        ids_NS = sweep.targets.token_ids.gather(1, entry)[:, 0]
        weights_NS = sweep.targets.weights.gather(1, entry)[:, 0]
        logits_NS = sweep.chosen_logits.gather(1, entry)[:, 0]
        value = (sweep.divergences.gather(1, pick)[:, 0] * token_weights).sum()
        pull_NS = weights_NS * sweep.head.transform.derivative(logits_NS)
        gradient_ND = sweep.dense_gradient.clone()
        for column in range(ids_NS.shape[1]):  # S is small; [N, S, D] need not exist
            rows_ND = sweep.head.weight[ids_NS[:, column]].float()
            gradient_ND.addcmul_(pull_NS[:, column, None], rows_ND, value=-1.0)
        gradient_ND *= token_weights[:, None]
    result: Tensor = _KnownGradient.apply(sweep.features, value, gradient_ND)
    return result


class _KnownGradient(torch.autograd.Function):
    """A scalar whose gradient is known already when its value is."""

    @staticmethod
    def forward(ctx, features, value, gradient):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(gradient)
        ctx.features_dtype = features.dtype
        return value.clone()

    @staticmethod
    def backward(ctx, grad_output):  # type: ignore[no-untyped-def]
        (gradient,) = ctx.saved_tensors
        return (grad_output * gradient).to(ctx.features_dtype), None, None
