"""A cache's samples in blocks that share chunks, so that each chunk is decoded about once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vlsi_cache.manifest import CacheManifest
from vlsi_cache.store import CHUNK_TOKENS, DECODED_BYTES, Cache, token_bytes
from vlsi_cache.training.sample_order import BlockOrder, Indices

__all__ = ["BlockSize", "block_size", "cache_order", "shard_blocks"]

_BLOCK_CHUNKS: Final = 4
"""Chunks' worth of tokens in a block. Its ends lie inside chunks, so a quarter of the chunks is
decoded for two blocks."""
_WINDOW_BLOCKS: Final = 16
"""Most blocks of a window."""


@dataclass(frozen=True, slots=True)
class BlockSize:
    """How much is read together."""

    num_tokens: int
    """Response tokens of a block, about."""
    window: int
    """Blocks among which samples are shuffled."""


def block_size(manifest: CacheManifest) -> BlockSize:
    """The largest window whose decoded chunks fit twice into what a cache keeps.

    Twice, for a window's last batches and the first ones of the next are read side by side.
    """
    chunks = DECODED_BYTES // 2 // (CHUNK_TOKENS * token_bytes(manifest))
    # a block may touch one chunk more than it has tokens for
    of_block = max(min(_BLOCK_CHUNKS, chunks // 2 - 1), 1)
    window = max(min(chunks // (of_block + 1), _WINDOW_BLOCKS), 1)
    return BlockSize(of_block * CHUNK_TOKENS, window)


def cache_order(cache: Cache) -> BlockOrder:
    """The order of a complete cache's samples, those that failed in the dump left out.

    Raises:
        CacheError: a shard's header is damaged.
    """
    blocks = [
        block for shard in range(cache.manifest.num_shards) for block in shard_blocks(cache, shard)
    ]
    return BlockOrder(blocks, block_size(cache.manifest).window)


def shard_blocks(cache: Cache, shard_index: int) -> list[Indices]:
    """The recorded samples of a published shard, block by block.

    Raises:
        CacheError: the shard's header is damaged.
    """
    outline = cache.outline(shard_index)
    held = cache.manifest.shard_range(shard_index)
    samples = np.setdiff1d(np.arange(held.start, held.stop, dtype=np.int64), outline.failed)
    num_blocks = round(outline.num_tokens / block_size(cache.manifest).num_tokens)
    parts = np.array_split(samples, max(min(num_blocks, len(samples)), 1))
    return [part.astype(np.int64) for part in parts if len(part)]
