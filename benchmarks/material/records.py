"""Made-up records that the product's own recorder makes, for caches of any size."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.models import Head
from vlsi_cache.sampling import TapRecorder

__all__ = ["likely_and_drawn"]

CANDIDATES = 1024
"""Tokens that can follow at a place. Others have no probability."""
FEATURES = 48
FIRST_SCALE, LAST_SCALE = 1.3, 3.2
"""Spread of the logits at the first tap and at the output, in nats: entropies fall with depth."""
KEPT = 0.95
"""Correlation of the features of two neighbouring taps."""


def likely_and_drawn(
    num_tokens: int, *, taps: int, vocabulary: int, k: int, m: int
) -> tuple[SparseDistribution, NDArray[np.int32]]:
    """Record made-up tokens with k likely tokens and m draws from the whole.

    Every token has its own candidates, and candidates of low ids are close together: so ids are
    as frequent as words are (Zipf). Taps are a walk of features before one head.

    Returns:
        The records ``[N, L]``, and the tokens that the data holds ``[N]``.
    """
    torch.set_num_threads(1)  # the process may be forked, and threads would be lost
    generator = torch.Generator().manual_seed(0)
    head = Head(torch.randn(CANDIDATES, FEATURES, generator=generator) / FEATURES**0.5)
    features = [torch.randn(num_tokens, FEATURES, generator=generator)]
    for _ in range(taps - 1):
        fresh = torch.randn(num_tokens, FEATURES, generator=generator)
        features.append(KEPT * features[-1] + (1 - KEPT**2) ** 0.5 * fresh)
    scales = torch.linspace(FIRST_SCALE, LAST_SCALE, taps).tolist()
    features = [scale * tap for scale, tap in zip(scales, features, strict=True)]
    columns = _labels(head.logits(features[-1]), generator)
    order = torch.arange(CANDIDATES)
    recorder = TapRecorder(head, k=k, m=m, drawn_from="whole", order=order)
    shape = (num_tokens, taps, recorder.num_uniforms)
    dice = torch.rand(shape, dtype=torch.float64, generator=generator)
    made = recorder.record(features, columns, dice)
    ids = _candidates(num_tokens, vocabulary)
    token = np.arange(num_tokens)[:, None, None]
    # candidates ascend, so the order of the draws stays
    named = SparseDistribution(
        ids[token, made.token_ids],
        made.top_log_probs,
        made.entropy,
        made.label_log_prob,
        "whole",
    )
    return named, ids[np.arange(num_tokens), columns.numpy()]


def _labels(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw the token that the data holds from the output."""
    return torch.multinomial(torch.softmax(logits, -1), 1, generator=generator)[:, 0]


def _candidates(num_tokens: int, vocabulary: int) -> NDArray[np.int32]:
    """Return the candidates of each token, ``[N, CANDIDATES]``, ascending and distinct."""
    dice = np.random.default_rng(0).random((num_tokens, CANDIDATES))
    place = np.arange(CANDIDATES)
    ids = ((vocabulary - CANDIDATES) * ((place + dice) / CANDIDATES) ** 5).astype(np.int32)
    spread: NDArray[np.int32] = np.maximum.accumulate(ids, 1) + place.astype(np.int32)
    return spread
