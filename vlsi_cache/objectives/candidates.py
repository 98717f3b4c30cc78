"""The divergence from every candidate target, and the loss of the matched ones."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlsi_cache.models import Head
from vlsi_cache.objectives.divergences import FORWARD, Divergence
from vlsi_cache.objectives.sweep import Sweep, sweep_head
from vlsi_cache.objectives.targets import SparseTargets

__all__ = ["CandidateDivergences", "candidate_divergences"]


@dataclass(frozen=True, slots=True)
class CandidateDivergences:
    """Divergences of N tokens from C candidates, after one sweep."""

    values: Tensor
    """``[N, C]`` nats without a graph, for matching."""
    sweep: Sweep
    """The pass over the vocabulary."""
    targets: SparseTargets
    """The candidates."""
    divergence: Divergence
    """The divergence that ``values`` holds."""

    def matched(self, candidate: Tensor) -> Tensor:
        """Divergence from one candidate per token, ``[N]`` nats. It is differentiable and exact.

        Args:
            candidate: ``[N]`` long, each token's candidate.
        """
        log_q = self.sweep.matched_log_probs(candidate)
        _, weights, entropy = self.targets.matched(candidate)
        return self.divergence(log_q, weights, entropy)[:, 0]

    def expected(self, shares: Tensor) -> Tensor:
        """Mean divergence over the candidates, ``[N]`` nats. It is differentiable and exact.

        Args:
            shares: ``[N, C]`` or ``[C]``, each candidate's share, as constants.
        """
        _, weights, entropy = self.targets
        return (self.divergence(self.sweep.log_probs(), weights, entropy) * shares).sum(-1)


def candidate_divergences(
    features: Tensor, head: Head, targets: SparseTargets, divergence: Divergence = FORWARD
) -> CandidateDivergences:
    """Take the divergences from all candidates in one pass over the vocabulary.

    Args:
        features: ``[N, D]`` hidden states after the final norm.
        head: frozen head without padded rows. It gets no gradient.
        targets: N tokens, C candidates, S entries.
        divergence: divergence to take.
    """
    sweep = sweep_head(features, head, targets.token_ids)
    log_q = sweep.entries.log_probs
    values = divergence(log_q, targets.weights, targets.entropy)
    return CandidateDivergences(values, sweep, targets, divergence)
