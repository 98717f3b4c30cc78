"""The plain form of the sparse divergence, in autograd: the oracle of tests and benchmarks."""

from __future__ import annotations

import torch
from torch import Tensor

from vlsi_cache.models import Head
from vlsi_cache.objectives.targets import SparseTargets

__all__ = ["reference_divergences"]


def reference_divergences(
    features: Tensor, head: Head, targets: SparseTargets, vocab_size: int
) -> Tensor:
    """Divergence of every token under every candidate, ``[N, C]`` nats, differentiable.

    Args:
        features: ``[N, D]`` hidden states after the final norm.
        head: the backbone's head.
        targets: N tokens, C candidates, S entries.
        vocab_size: rows of the head that are real tokens.
    """
    log_q = torch.log_softmax(head.logits(features, vocab_size).float(), dim=-1)
    num_candidates = targets.token_ids.shape[1]
    chosen = log_q[:, None, :].expand(-1, num_candidates, -1).gather(2, targets.token_ids)
    return -(targets.weights * chosen).sum(-1) - targets.entropy
