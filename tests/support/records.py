"""Records straight from the samplers."""

from __future__ import annotations

from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.sampling.sparsify import Kept

__all__ = ["as_record"]


def as_record(kept: Kept) -> SparseDistribution:
    return SparseDistribution(
        token_ids=kept.token_ids.int().numpy(),
        top_log_probs=kept.top_log_probs.numpy(),
        entropy=kept.entropy.numpy(),
        label_log_prob=kept.label_log_prob.numpy(),
    )
