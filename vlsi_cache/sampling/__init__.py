"""From dense distributions to a sparse, unbiased record (Sparse Logit Sampling, ACL 2025)."""

from vlsi_cache.sampling.draws import (
    Drawn,
    DrawnTail,
    coupled_draws,
    coupled_tail_draws,
    systematic_draws,
)
from vlsi_cache.sampling.hosting import PendingCopy, begin_copy, begin_send
from vlsi_cache.sampling.recorder import (
    PendingRecord,
    TapRecorder,
    chunk_elements,
    streamed_tokens,
)
from vlsi_cache.sampling.remembered_order import ORDER_FILE, remembered_order
from vlsi_cache.sampling.sparsify import sparsify
from vlsi_cache.sampling.together import draw_together, num_uniforms
from vlsi_cache.sampling.vocabulary_order import vocabulary_order

__all__ = [
    "ORDER_FILE",
    "Drawn",
    "DrawnTail",
    "PendingCopy",
    "PendingRecord",
    "TapRecorder",
    "begin_copy",
    "begin_send",
    "chunk_elements",
    "coupled_draws",
    "coupled_tail_draws",
    "draw_together",
    "num_uniforms",
    "remembered_order",
    "sparsify",
    "streamed_tokens",
    "systematic_draws",
    "vocabulary_order",
]
