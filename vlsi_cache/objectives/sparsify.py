"""From dense logits to a sparse, unbiased record (METHOD §3)."""

from __future__ import annotations

import torch
from torch import Tensor

from vlsi_cache.distribution import SparseDistribution

__all__ = ["sparsify", "systematic_draws"]

_LEAST_LOG_PROB = -1e4
"""Far below where exp is 0 in float32."""


@torch.no_grad()
def sparsify(
    logits: Tensor, labels: Tensor, uniforms: Tensor, *, k: int, m: int
) -> SparseDistribution:
    """Keep the k most likely tokens and m draws from the rest.

    Args:
        logits: ``[N, V]`` float32, real tokens only.
        labels: ``[N]`` long, the tokens that the data holds.
        uniforms: ``[N]`` in [0, 1): one random number per token, in float64 where the device knows
            it, since sums over the vocabulary are taken in the same dtype. Taps of one token share
            theirs (common random numbers), so that neighbouring taps draw mostly the same ids.
        k: most likely tokens kept, at most V.
        m: draws.

    Returns:
        Arrays of leading shape ``[N]``.
    """
    log_p = torch.log_softmax(logits, dim=-1)
    top = log_p.topk(k, dim=-1)
    probability = log_p.exp()
    # a product and not xlogy, which takes the logarithm again; the clamp keeps 0 · −∞ at 0
    entropy = -torch.linalg.vecdot(probability, log_p.clamp(min=_LEAST_LOG_PROB))
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
        uniforms: ``[N]`` in [0, 1); its dtype is that of the running sums.
        num_draws: pointers per row.

    Returns:
        ``[N, num_draws]`` long, ascending. A row without weight gives its last entry; such draws
        stand for no mass.
    """
    cumulative = weights.cumsum(dim=-1, dtype=uniforms.dtype)
    offsets = torch.arange(num_draws, device=weights.device, dtype=uniforms.dtype)
    pointers = (uniforms[:, None] + offsets) / num_draws * cumulative[:, -1:]
    # right=True skips entries without weight: an id kept at the top is never drawn again
    drawn = torch.searchsorted(cumulative, pointers, right=True)
    return drawn.clamp_(max=weights.shape[1] - 1)
