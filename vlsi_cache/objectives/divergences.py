"""Divergences between a sparse target and a student, from log-probabilities at the target's ids.

Two readings of a target's entries. As draws they are all there is: weights sum to 1.
As bins they are k tokens of their own and one bin of all others, whose mass is what the weights
lack of 1; a divergence of the k + 1 bins is a lower bound of that of the whole distributions, and
its gradient follows from the same log-probabilities, since ``q_tail = 1 − Σ q_i``.

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
    """How far a student's distribution q is from a target p.

    Raises:
        ValueError: the kind needs probabilities of both sides, which draws do not carry.
    """

    kind: Kind = "forward"
    """``forward`` KL(p ‖ q); and on k + 1 bins ``reverse`` KL(q ‖ p) (MiniLLM), ``js`` with equal
    halves (GKD), ``skewed`` KL(p ‖ skew · p + (1 − skew) · q) (DistiLLM), ``l2`` Σ (p − q)²."""
    tail: Tail = "sample"
    """What stands for the tokens that are not kept: draws of them, one bin, or nothing (the kept
    ones scaled to sum to 1, which is biased)."""
    skew: float = 0.1
    """Share of the target in the mixture of ``skewed``."""

    def __post_init__(self) -> None:
        if self.kind != "forward" and self.tail != "bucket":
            raise ValueError(f"divergence {self.kind!r} needs tail 'bucket', not {self.tail!r}")

    def __call__(self, log_q: Tensor, weights: Tensor, entropy: Tensor) -> Tensor:
        """The divergence in nats (``l2``: none), ``[*]``, differentiable by ``log_q``.

        Args:
            log_q: ``[*, S]``, the student's log-probabilities at the target's ids.
            weights: ``[*, S]``, the target's.
            entropy: ``[*]`` nats, of the distribution that the target stands for.
        """
        if self.tail != "bucket":
            return -(weights * log_q).sum(-1) - entropy
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
        log_mixture = ((p + q) / 2).clamp_min(_tiny(q)).log()
        to_p = (p * (log_p - log_mixture)).sum(-1)
        to_q = (q * (log_q - log_mixture)).sum(-1)
        return (to_p + to_q) / 2


FORWARD: Final = Divergence()
"""The method's own: forward KL, the tail sampled."""


def _with_tail(probs: Tensor, log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Bins ``[*, S + 1]``: the entries, and last whatever they lack of 1.

    The lack is a difference of numbers near 1, wrong by as much as the dtype's epsilon however
    small it is: in float32 the forward divergence loses accuracy where the student leaves the tail
    less than about 1e-3, and means little below 1e-5.
    """
    tail = (1.0 - probs.sum(-1, keepdim=True)).clamp_min(torch.finfo(probs.dtype).eps)
    return torch.cat([probs, tail], -1), torch.cat([log_probs, tail.log()], -1)


def _tiny(value: Tensor) -> float:
    return torch.finfo(value.dtype).tiny
