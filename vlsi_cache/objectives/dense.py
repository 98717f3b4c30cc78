"""KL against a whole distribution, a chunk of tokens at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vlsi_cache.models import Head
from vlsi_cache.objectives.tiles import chunk_tokens, chunks

__all__ = ["dense_divergence"]


def dense_divergence(
    features: Tensor,
    head: Head,
    target_features: Tensor,
    target_head: Head,
    vocab_size: int,
) -> Tensor:
    """KL(target ‖ features) of every token, ``[N]`` nats; none of it is the target's gradient.

    Args:
        features: ``[N, D]`` hidden states after the final norm.
        head: their head; it gets a gradient if it trains.
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

    parts = [
        # recomputed in the backward pass, so that no chunk's logits outlive it
        checkpoint(chunk_divergence, features[part], target_features[part], use_reentrant=False)
        for part in chunks(len(features), chunk_tokens(vocab_size))
    ]
    return torch.cat(parts) if parts else features.new_zeros(0, dtype=torch.float32)
