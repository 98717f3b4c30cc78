"""Divergences between a sparse target and a student, from log-probabilities at the target's ids.

A target's entries have two readings. As draws, they stand for the whole distribution, and their
weights sum to 1. As bins, they are k tokens and one more bin for all others, with the mass
``1 − Σ weights``. A divergence of the k + 1 bins is a lower bound of the divergence of the whole
distributions. Its gradient follows from the same log-probabilities: ``q_tail = 1 − Σ q_i``.

Shapes: * leading axes such as [N, C], S entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

__all__ = ["FORWARD", "Divergence", "Kind", "Tail"]

Kind = Literal["forward", "reverse", "js", "skewed", "l2"]
Tail = Literal["sample", "bucket", "renormalize"]


@dataclass(frozen=True, slots=True)
class Divergence:
    """A measure of how far a student's distribution q is from a target p.

    Raises:
        ValueError: the kind needs probabilities of both sides, and draws do not have them.
    """

    kind: Kind = "forward"
    """``forward``: KL(p ‖ q). The others need k + 1 bins. ``reverse``: KL(q ‖ p) (MiniLLM).
    ``js``: Jensen-Shannon with equal halves (GKD). ``skewed``: KL(p ‖ skew · p + (1 − skew) · q)
    (DistiLLM). ``l2``: Σ (p − q)²."""
    tail: Tail = "sample"
    """What stands for the tokens that are not kept. ``sample``: draws of them. ``bucket``: one bin.
    ``renormalize``: nothing, with the kept ones scaled to sum to 1, which is biased."""
    skew: float = 0.1
    """The target's share of the mixture in ``skewed``."""

    def __post_init__(self) -> None:
        if self.kind != "forward" and self.tail != "bucket":
            raise ValueError(f"divergence {self.kind!r} needs tail 'bucket', not {self.tail!r}")

    def __call__(self, log_q: Tensor, weights: Tensor, entropy: Tensor) -> Tensor:
        """Take the divergence, ``[*]`` in nats (``l2`` has no unit), differentiable by ``log_q``.

        Args:
            log_q: ``[*, S]``, the student's log-probabilities at the target's ids.
            weights: ``[*, S]``, the target's weights.
            entropy: ``[*]`` nats, entropy of the distribution that the target stands for.
        """
        # KL(p ‖ q) = −Σ p log q − H(p). The target's part H(p) is known, and exact for draws too.
        if self.tail != "bucket":
            return -(weights * log_q).sum(-1) - entropy
        # The clamp keeps the logarithm of a weight of 0 finite.
        p, log_p = _with_tail(weights, weights.clamp_min(_tiny(weights)).log())
        q, log_q = _with_tail(log_q.exp(), log_q)
        if self.kind == "forward":
            return -(p * log_q).sum(-1) - entropy
        if self.kind == "reverse":
            return (q * (log_q - log_p)).sum(-1)
        if self.kind == "l2":
            return (p - q).square().sum(-1)
        if self.kind == "skewed":
            mixture = self.skew * p + (1 - self.skew) * q
            return -(p * mixture.clamp_min(_tiny(q)).log()).sum(-1) - entropy
        # JS = (KL(p ‖ m) + KL(q ‖ m)) / 2 with m = (p + q) / 2.
        log_mixture = ((p + q) / 2).clamp_min(_tiny(q)).log()
        to_p = (p * (log_p - log_mixture)).sum(-1)
        to_q = (q * (log_q - log_mixture)).sum(-1)
        return (to_p + to_q) / 2


FORWARD: Final = Divergence()
"""The divergence of the method: forward KL with a sampled tail."""


def _with_tail(probs: Tensor, log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Bins ``[*, S + 1]``: the entries, and last the mass that they lack of 1.

    That mass is a difference of numbers near 1, so its error is the dtype's epsilon, however small
    the mass is. In float32, the forward divergence loses accuracy where the student's tail has less
    than about 1e-3, and means little below 1e-5.
    """
    tail = (1.0 - probs.sum(-1, keepdim=True)).clamp_min(torch.finfo(probs.dtype).eps)
    return torch.cat([probs, tail], -1), torch.cat([log_probs, tail.log()], -1)


def _tiny(value: Tensor) -> float:
    return torch.finfo(value.dtype).tiny
