"""From dense logits to a sparse, unbiased record (METHOD §3)."""

from __future__ import annotations

import torch
from torch import Tensor

from vlsi_cache.distribution import SparseDistribution

__all__ = ["sparsify", "systematic_draws"]


@torch.no_grad()
def sparsify(
    logits: Tensor, labels: Tensor, uniforms: Tensor, *, k: int, m: int
) -> SparseDistribution:
    """Keep the k most likely tokens and m draws from the rest.

    Args:
        logits: ``[N, V]`` float32, real tokens only.
        labels: ``[N]`` long, the tokens that the data holds.
        uniforms: ``[N]`` float64 in [0, 1): one random number per token. Taps of one token share
            theirs (common random numbers), so that neighbouring taps draw mostly the same ids.
        k: most likely tokens kept, at most V.
        m: draws.

    Returns:
        Arrays of leading shape ``[N]``.
    """
    log_p = torch.log_softmax(logits, dim=-1)
    top = log_p.topk(k, dim=-1)
    probability = log_p.exp()
    entropy = -torch.special.xlogy(probability, probability).sum(-1)
    token_ids = top.indices
    if m:
        tail = probability.scatter_(1, top.indices, 0.0)
        token_ids = torch.cat([top.indices, systematic_draws(tail, uniforms, m)], dim=1)
    return SparseDistribution(
        token_ids=token_ids.int().cpu().numpy(),
        top_log_probs=top.values.cpu().numpy(),
        entropy=entropy.cpu().numpy(),
        label_log_prob=log_p.gather(1, labels[:, None])[:, 0].cpu().numpy(),
    )


def systematic_draws(weights: Tensor, uniforms: Tensor, num_draws: int) -> Tensor:
    """Systematic sampling: every entry is drawn ``num_draws × its share`` times on average.

    Evenly spaced pointers with one random offset per row have less variance than independent
    draws and stay unbiased (Horvitz-Thompson).

    Args:
        weights: ``[N, V]``, not negative.
        uniforms: ``[N]`` float64 in [0, 1).
        num_draws: pointers per row.

    Returns:
        ``[N, num_draws]`` long, ascending. A row without weight gives its last entry; such draws
        stand for no mass.
    """
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
    offsets = torch.arange(num_draws, device=weights.device, dtype=torch.float64)
    pointers = (uniforms[:, None] + offsets) / num_draws * cumulative[:, -1:]
    # right=True skips entries without weight: an id kept at the top is never drawn again
    drawn = torch.searchsorted(cumulative, pointers, right=True)
    return drawn.clamp_(max=weights.shape[1] - 1)
