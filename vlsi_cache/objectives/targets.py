"""Sparse distributions as targets of a loss: ids, weights and entropies."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.objectives.divergences import Tail

__all__ = ["SparseTargets", "label_targets", "sparse_targets"]


class SparseTargets(NamedTuple):
    """Targets of N tokens under C candidates with S entries each.

    The meaning of the weights follows from ``Divergence.tail``. For the sampled tail they sum to 1,
    and ``CE(target, q) − entropy`` is an unbiased estimate of KL(p ‖ q) (Sparse Logit Sampling, ACL
    2025). For the bucket, the mass that they lack of 1 is that of all other tokens.
    """

    token_ids: Tensor
    """``[N, C, S]`` long."""
    weights: Tensor
    """``[N, C, S]`` float32."""
    entropy: Tensor
    """``[N, C]`` float32, nats: entropy of the distribution that the entries stand for."""

    def candidate(self, index: int) -> SparseTargets:
        """Select one candidate, as ``C = 1``. Negative indices count from the end."""
        return self.candidates(slice(index, index + 1 or None))

    def candidates(self, which: slice | Tensor) -> SparseTargets:
        """Select some of the candidates, by a slice or by their indices."""
        return SparseTargets(
            self.token_ids[:, which], self.weights[:, which], self.entropy[:, which]
        )

    def matched(self, candidate: Tensor) -> SparseTargets:
        """Select one candidate per token, as ``C = 1``. ``candidate`` is ``[N]`` long."""
        entry = candidate[:, None, None].expand(-1, 1, self.token_ids.shape[2])
        return SparseTargets(
            self.token_ids.gather(1, entry),
            self.weights.gather(1, entry),
            self.entropy.gather(1, candidate[:, None]),
        )


def label_targets(labels: Tensor) -> SparseTargets:
    """Turn hard labels ``[N]`` into targets. Their divergence is the cross-entropy."""
    return SparseTargets(
        token_ids=labels[:, None, None],
        weights=torch.ones(len(labels), 1, 1, device=labels.device),
        entropy=torch.zeros(len(labels), 1, device=labels.device),
    )


def _least_tail(top_log_probs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the tail's mass that the kept log-probabilities can still show, ``[*, 1]``.

    They are stored as float16, which rounds each by up to half a step. The errors of the k
    probabilities add up as independent ones do. A smaller tail is noise, and its logarithm more so.
    """
    stored = np.clip(top_log_probs, np.finfo(np.float16).min, 0).astype(np.float16)
    half_step = np.spacing(np.abs(stored)).astype(np.float64) / 2
    errors = np.exp(stored.astype(np.float64)) * half_step
    least: np.ndarray[Any, Any] = np.sqrt(np.square(errors).sum(-1, keepdims=True))
    return least.clip(np.finfo(np.float32).eps, 0.5)


def sparse_targets(distribution: SparseDistribution, tail: Tail) -> SparseTargets:
    """Turn a record's distributions into targets, on the CPU.

    Args:
        distribution: the distributions, ``[N, C]``.
        tail: what stands for the tokens beyond the k most likely. ``sample``: the drawn tokens,
            which share that mass. Without draws it is as ``renormalize``. ``bucket``: nothing
            here, because the divergence makes a bin of it. ``renormalize``: nothing at all, with
            the k weights scaled to sum to 1.

    Raises:
        ValueError: the tail is not sampled, and the record has no most likely tokens.

    Returns:
        Targets with S = k + m for ``sample`` and S = k otherwise. The entropy is that of the whole
        distribution for ``sample``, of the k + 1 bins for ``bucket``, and of the k weights for
        ``renormalize``.
    """
    k = distribution.k
    if tail == "sample" and not distribution.m:
        tail = "renormalize"
    if tail == "sample":
        ids = distribution.token_ids
        weights = distribution.weights()
        entropy = distribution.entropy
    elif not k:
        raise ValueError(f"tail {tail} needs records with k ≥ 1")
    else:
        ids = distribution.token_ids[..., :k]
        weights, entropy = _bins(distribution.top_log_probs, tail)
    return SparseTargets(
        torch.from_numpy(ids.astype(np.int64)),
        torch.from_numpy(weights.astype(np.float32)),
        torch.from_numpy(entropy.astype(np.float32)),
    )


def _bins(log_probs: np.ndarray[Any, Any], tail: Tail) -> tuple[Any, Any]:
    """Return the weights ``[N, C, k]`` of the most likely tokens, and the entropy with the rest."""
    # In float64, because the rest 1 − mass is a small difference.
    top = np.exp(log_probs.astype(np.float64))
    mass = top.sum(-1, keepdims=True)
    rest = np.zeros_like(mass)
    if tail == "bucket":
        rest = np.maximum(1 - mass, _least_tail(log_probs))
    # what the kept ones lack, or exceed by rounding, is made up for by their scale
    scaled = (rest > 1 - mass) | (tail == "renormalize")
    top = np.where(scaled, top * (1 - rest) / np.maximum(mass, 1e-300), top)
    bins = np.concatenate([top, rest], -1)
    return top, -(bins * np.log(np.maximum(bins, 1e-300))).sum(-1)
