"""The order of a cache's samples, in groups that share chunks: each is decoded about once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from vlsi_cache.manifest import CacheManifest
from vlsi_cache.store import CHUNK_TOKENS, DECODED_BYTES, Cache, token_bytes
from vlsi_cache.training import GroupOrder, Indices

__all__ = ["GroupSize", "cache_order", "group_size", "shard_groups"]

_GROUP_CHUNKS: Final = 4
"""Tokens of a group, in chunks. A group's ends lie inside chunks, so a quarter of the chunks is
decoded for two groups."""
_WINDOW_GROUPS: Final = 16
"""Most groups of a window."""


@dataclass(frozen=True, slots=True)
class GroupSize:
    """How many samples are read together."""

    num_tokens: int
    """About how many response tokens a group has."""
    window: int
    """Groups among which samples are shuffled."""


def group_size(manifest: CacheManifest) -> GroupSize:
    """Return the largest window whose decoded chunks fit twice into what an open cache keeps.

    They must fit twice, since one window's last batches are read beside the first of the next.
    """
    chunks = DECODED_BYTES // 2 // (CHUNK_TOKENS * token_bytes(manifest))
    # a group may touch one chunk more than it has tokens for
    of_group = max(min(_GROUP_CHUNKS, chunks // 2 - 1), 1)
    window = max(min(chunks // (of_group + 1), _WINDOW_GROUPS), 1)
    return GroupSize(of_group * CHUNK_TOKENS, window)


def cache_order(cache: Cache, left_out: Sequence[int] = ()) -> GroupOrder:
    """Return the order of a complete cache's samples, without those that failed in the dump.

    Args:
        cache: the teacher's record.
        left_out: indices of other samples that are not in it.

    Raises:
        CacheError: a shard's header is damaged.
    """
    groups = [
        group
        for shard in range(cache.manifest.num_shards)
        for group in shard_groups(cache, shard, left_out)
    ]
    return GroupOrder(groups, group_size(cache.manifest).window)


def shard_groups(cache: Cache, shard_index: int, left_out: Sequence[int] = ()) -> list[Indices]:
    """Return the recorded samples of a published shard, group by group.

    Raises:
        CacheError: the shard's header is damaged.
    """
    outline = cache.outline(shard_index)
    held = cache.manifest.shard_range(shard_index)
    samples = np.setdiff1d(np.arange(held.start, held.stop, dtype=np.int64), outline.failed)
    samples = np.setdiff1d(samples, np.asarray(left_out, dtype=np.int64))
    num_groups = round(outline.num_tokens / group_size(cache.manifest).num_tokens)
    parts = np.array_split(samples, max(min(num_groups, len(samples)), 1))
    return [part.astype(np.int64) for part in parts if len(part)]
