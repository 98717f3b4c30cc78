"""The k likeliest tokens of dense distributions, without a search through all of the vocabulary.

Shape suffixes: N tokens, V vocabulary, k likeliest tokens, G entries of one block.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

__all__ = ["likeliest_tokens"]

_BLOCK: Final = 64
"""G. The maxima of blocks cost one fast pass, where a search through all entries costs five."""


def likeliest_tokens(probability: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k greatest entries of each row, the greatest first, and their columns.

    The k blocks with the greatest maxima hold them: nothing elsewhere exceeds any of these maxima.
    Which of equal entries are returned is left open, as in ``torch.topk``.

    Args:
        probability: ``[N, V]``, finite.
        k: at most V.
    """
    vocab_size = probability.shape[1]
    num_blocks = vocab_size // _BLOCK
    if k >= num_blocks:
        found = probability.topk(k, dim=-1)
        return found.values, found.indices
    blocks = probability[:, : num_blocks * _BLOCK].unflatten(1, (num_blocks, _BLOCK))
    first = blocks.amax(-1).topk(k, dim=-1).indices * _BLOCK
    columns = first[..., None] + torch.arange(_BLOCK, device=first.device)
    # What is beyond the last whole block is always searched.
    beyond = torch.arange(num_blocks * _BLOCK, vocab_size, device=first.device)
    columns = torch.cat([columns.flatten(1), beyond.expand(len(first), -1)], 1)
    found = probability.gather(1, columns).topk(k, dim=-1)
    return found.values, columns.gather(1, found.indices)
