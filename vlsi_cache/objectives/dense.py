"""KL from a whole distribution, computed a chunk of tokens at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vlsi_cache.models import Head
from vlsi_cache.objectives.tiles import chunk_tokens, chunks

__all__ = ["dense_divergence"]


def dense_divergence(
    features: Tensor, head: Head, target_features: Tensor, target_head: Head
) -> Tensor:
    """KL(target ‖ features) at every token, ``[N]`` nats. The target gets no gradient.

    Args:
        features: ``[N, D]`` hidden states after the final norm.
        head: their head without padded rows. It gets a gradient if it trains.
        target_features: ``[N, D']`` hidden states whose distribution is the target.
        target_head: their head, with the same V rows.
    """
    # Once: under autocast, each chunk would cast the rows again.
    head = head.to_autocast()
    target_head = target_head.to_autocast()

    def chunk_divergence(part: Tensor, target_part: Tensor) -> Tensor:
        with torch.no_grad():
            log_p = torch.log_softmax(target_head.logits(target_part).float(), dim=-1)
        log_q = torch.log_softmax(head.logits(part).float(), dim=-1)
        return F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)

    parts = [
        # The backward pass computes a chunk again, so that no chunk's logits outlive it.
        checkpoint(chunk_divergence, features[part], target_features[part], use_reentrant=False)
        for part in chunks(len(features), chunk_tokens(head.num_rows, features.device, planes=4))
    ]
    # without tokens, too, there is a graph to go back through
    return torch.cat(parts) if parts else features.float().sum(-1)
