"""Objectives against whole distributions, a chunk of tokens at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vlsi_cache.models import Head
from vlsi_cache.objectives.sweep import chunk_tokens

__all__ = ["dense_divergence", "linear_cross_entropy"]


def linear_cross_entropy(features: Tensor, head: Head, labels: Tensor, vocab_size: int) -> Tensor:
    """Sum of cross-entropies in nats, 0-d; gradients reach features *and* head.

    Args:
        features: ``[N, D]`` hidden states after the final norm.
        head: trainable head.
        labels: ``[N]`` long.
        vocab_size: rows of the head that are real tokens.
    """
    real = head.cut(vocab_size)

    def chunk_loss(part: Tensor, part_labels: Tensor) -> Tensor:
        logits = real.logits(part).float()
        return F.cross_entropy(logits, part_labels, reduction="sum")

    total = torch.zeros((), device=features.device)
    step = chunk_tokens(vocab_size)
    for start in range(0, len(features), step):
        part = slice(start, start + step)
        # recomputed in the backward pass, so that no chunk's logits outlive it
        total = total + checkpoint(chunk_loss, features[part], labels[part], use_reentrant=False)
    return total


def dense_divergence(
    features: Tensor,
    head: Head,
    target_features: Tensor,
    target_head: Head,
    vocab_size: int,
) -> Tensor:
    """KL(target ‖ features) of every token, ``[N]`` nats; gradients reach ``features`` only.

    Args:
        features: ``[N, D]`` hidden states after the final norm.
        head: their head.
        target_features: ``[N, D']`` hidden states whose distribution is the target.
        target_head: theirs.
        vocab_size: V, ids that both heads share.
    """
    real, target_real = head.cut(vocab_size), target_head.cut(vocab_size)

    def chunk_divergence(part: Tensor, target_part: Tensor) -> Tensor:
        with torch.no_grad():
            log_p = torch.log_softmax(target_real.logits(target_part).float(), dim=-1)
        log_q = torch.log_softmax(real.logits(part).float(), dim=-1)
        return F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)

    step = chunk_tokens(vocab_size)
    chunks = [
        checkpoint(
            chunk_divergence,
            features[start : start + step],
            target_features[start : start + step],
            use_reentrant=False,
        )
        for start in range(0, len(features), step)
    ]
    return torch.cat(chunks) if chunks else features.new_zeros(0, dtype=torch.float32)
