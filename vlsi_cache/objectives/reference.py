"""The plain form of every objective in autograd: tests and benchmarks compare with it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlsi_cache.models import Head
from vlsi_cache.objectives.divergences import FORWARD, Divergence
from vlsi_cache.objectives.targets import SparseTargets

__all__ = [
    "reference_cross_entropy",
    "reference_divergences",
    "reference_soft_cross_entropy",
]


def reference_divergences(
    features: Tensor, head: Head, targets: SparseTargets, divergence: Divergence = FORWARD
) -> Tensor:
    """Divergence of every token from every candidate, ``[N, C]`` nats, differentiable.

    Args:
        features: ``[N, D]`` hidden states after the final norm.
        head: head without padded rows.
        targets: N tokens, C candidates, S entries.
        divergence: divergence to take.
    """
    logits = head.logits(features)
    log_q = torch.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float))
    chosen = log_q.gather(1, targets.token_ids.flatten(1)).view(targets.token_ids.shape)
    if divergence.tail != "bucket":
        return -(targets.weights * chosen).sum(-1) - targets.entropy
    kept = torch.zeros_like(log_q)[:, None].expand(-1, chosen.shape[1], -1)
    kept = kept.scatter(2, targets.token_ids, 1.0)
    tail_q = (log_q.exp()[:, None] * (1 - kept)).sum(-1, keepdim=True)
    q = torch.cat([chosen.exp(), tail_q], -1)
    p = torch.cat([targets.weights, (1 - targets.weights.sum(-1, keepdim=True)).clamp_min(0)], -1)
    return _bin_divergence(p.to(q), q, divergence)


def _bin_divergence(p: Tensor, q: Tensor, divergence: Divergence) -> Tensor:
    if divergence.kind == "l2":
        return (p - q).square().sum(-1)
    if divergence.kind == "reverse":
        return _kl(q, p)
    if divergence.kind == "js":
        return (_kl(p, (p + q) / 2) + _kl(q, (p + q) / 2)) / 2
    skew = divergence.skew if divergence.kind == "skewed" else 0.0
    return _kl(p, skew * p + (1 - skew) * q)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1)


def reference_cross_entropy(features: Tensor, head: Head, labels: Tensor) -> Tensor:
    """Sum of cross-entropies in nats, 0-d. Gradients reach features and head.

    Args:
        features: ``[N, D]`` hidden states after the final norm.
        head: head without padded rows.
        labels: ``[N]`` long.
    """
    return F.cross_entropy(head.logits(features).float(), labels, reduction="sum")


def reference_soft_cross_entropy(
    features: Tensor, head: Head, token_ids: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum of ``−weight · log q`` in nats, 0-d, and log q ``[N, S]``.

    Args:
        features: ``[N, D]`` hidden states after the final norm.
        head: head without padded rows.
        token_ids: ``[N, S]`` long.
        weights: ``[N, S]``.
    """
    log_probs = head.logits(features).float().log_softmax(-1).gather(1, token_ids)
    return -(weights * log_probs).sum(), log_probs
