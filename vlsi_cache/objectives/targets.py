"""Sparse distributions as a loss reads them: ids, weights and the entropy they lack."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["SparseTargets", "label_targets"]


class SparseTargets(NamedTuple):
    """Targets of N tokens under C candidates with S entries each.

    ``CE(target, q) − entropy`` is an unbiased estimate of KL(p ‖ q) where the entries are the top
    of p and draws from its tail (METHOD §3).
    """

    token_ids: Tensor
    """``[N, C, S]`` long."""
    weights: Tensor
    """``[N, C, S]`` float32; each row sums to 1."""
    entropy: Tensor
    """``[N, C]`` float32, nats: H(p) of the whole distribution behind each target."""

    def candidate(self, index: int) -> SparseTargets:
        """One candidate alone, as ``C = 1``; negative indices count from the end."""
        stop = index + 1 or None
        return SparseTargets(
            self.token_ids[:, index:stop], self.weights[:, index:stop], self.entropy[:, index:stop]
        )


def label_targets(labels: Tensor) -> SparseTargets:
    """Certain targets for labels ``[N]``: their divergence is the cross-entropy."""
    return SparseTargets(
        token_ids=labels[:, None, None],
        weights=torch.ones(len(labels), 1, 1, device=labels.device),
        entropy=torch.zeros(len(labels), 1, device=labels.device),
    )
