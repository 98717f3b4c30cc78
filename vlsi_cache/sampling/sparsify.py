"""One tap's record from dense logits: its likeliest tokens and draws, or draws alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlsi_cache.distribution import ENTROPY_STEP, LABEL_STEP
from vlsi_cache.sampling.draws import Drawn, coupled_draws, systematic_draws

__all__ = ["Kept", "draw", "rounded", "sparsify"]

_LEAST_LOG_PROB = -1e4
"""Far below where exp is 0 in float32."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The record of N distributions, on their device. See ``SparseDistribution``."""

    token_ids: Tensor
    """``[N, k + m]`` long."""
    top_log_probs: Tensor
    """``[N, k]``."""
    entropy: Tensor
    """``[N]``, a multiple of ``ENTROPY_STEP``."""
    label_log_prob: Tensor
    """``[N]``, a multiple of ``LABEL_STEP``."""


@torch.no_grad()
def sparsify(logits: Tensor, labels: Tensor, uniforms: Tensor, *, k: int, m: int) -> Kept:
    """Keep the k most likely tokens and m draws from the rest.

    Args:
        logits: ``[N, V]`` float32, real tokens only.
        labels: ``[N]`` long, the tokens that the data holds.
        uniforms: ``[N]`` in [0, 1), one random number per token. Use float64 where the device has
            it: sums over the vocabulary take the same dtype.
        k: most likely tokens kept, at most V.
        m: number of draws.
    """
    log_p = torch.log_softmax(logits, dim=-1)
    label_log_prob = log_p.gather(1, labels[:, None])[:, 0]
    top = log_p.topk(k, dim=-1)
    probability, entropy = _with_entropy(log_p)
    token_ids = top.indices
    if m:
        tail = probability.scatter_(1, top.indices, 0.0)
        token_ids = torch.cat([top.indices, systematic_draws(tail, uniforms, m)], dim=1)
    return Kept(token_ids, top.values, *rounded(entropy, label_log_prob, uniforms))


@torch.no_grad()
def draw(
    logits: Tensor,
    labels: Tensor,
    uniforms: Tensor,
    *,
    m: int,
    later: Drawn | None,
    memory: tuple[Tensor, Tensor] | None = None,
) -> tuple[Kept, Drawn]:
    """Draw m tokens from the whole distribution, coupled to the tap after this one.

    Args:
        logits: ``[N, V]`` float32, real tokens only, in any order, finite.
        labels: ``[N]`` long, the columns of the tokens that the data holds.
        uniforms: ``[N]`` in [0, 1), independent of those of other taps.
        m: number of draws.
        later: draws of the tap after this one. None for the last tap.
        memory: two buffers ``[N, V]``. The first takes the probabilities, and the returned
            ``Drawn`` keeps it. The second is overwritten. None to allocate both.

    Returns:
        The record, whose ids are columns of ``logits``, and the draws that the tap before this one
        may share.
    """
    own, scratch = memory or (None, None)
    probability = torch.softmax(logits, dim=-1, out=own)
    drawn = coupled_draws(probability, uniforms, m, later, scratch)
    # log p = z − log Σ exp z. Any entry gives the normaliser as z − log p, and a likely one gives
    # it exactly. log_softmax would be three passes more over the vocabulary.
    most = probability.gather(1, drawn.positions).argmax(1, keepdim=True)
    likely = drawn.positions.gather(1, most)
    normaliser = logits.gather(1, likely) - probability.gather(1, likely).log()
    label_log_prob = (logits.gather(1, labels[:, None]) - normaliser)[:, 0]
    # H = −Σ p log p = log Σ exp z − Σ p z, since Σ p = 1.
    entropy = normaliser[:, 0] - torch.mul(probability, logits, out=scratch).sum(1)
    nothing = logits.new_empty(len(logits), 0)
    kept = Kept(drawn.positions, nothing, *rounded(entropy, label_log_prob, uniforms))
    return kept, drawn


def _with_entropy(log_p: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities [N, V] and entropy [N]. Overwrites ``log_p``."""
    probability = log_p.exp()
    # A product and not xlogy, which takes the logarithm again. The clamp keeps 0 · −∞ at 0.
    return probability, -torch.linalg.vecdot(probability, log_p.clamp_(min=_LEAST_LOG_PROB))


def rounded(entropy: Tensor, label_log_prob: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Round up or down at random, so that the means stay what they are: ``E[⌊x + u⌋] = x``."""
    # A uniform just below 1 in float64 is 1 in float32, and would lift a certain label above 0.
    dice = uniforms.to(entropy.dtype).clamp(max=1 - torch.finfo(entropy.dtype).eps)
    return (
        (entropy.clamp(min=0.0) / ENTROPY_STEP + dice).floor() * ENTROPY_STEP,
        (label_log_prob.clamp(max=0.0) / LABEL_STEP + dice).floor() * LABEL_STEP,
    )
