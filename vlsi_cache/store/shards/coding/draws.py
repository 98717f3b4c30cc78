"""The codec of draws: every id of a token once, with the taps that drew it.

Neighbouring taps draw mostly the same ids, so an id is written once for all taps. FORMAT.md
describes the bytes one by one, with a decoder of a page.

Shapes: n tokens, L taps, m draws, P distinct ids of all tokens, E entries.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vlsi_cache.manifest import MAX_DRAWS, MAX_POOL
from vlsi_cache.store.shards.coding.pools import (
    PooledEntries,
    count_distinct,
    gaps_of,
    ids_of,
    put_counts,
    put_gaps,
    put_taps,
    rows_of,
    take_counts,
    take_entries,
    take_gaps,
)
from vlsi_cache.store.shards.coding.streams import Ints, StreamReader, StreamWriter

__all__ = ["decode_draws", "encode_draws"]

_HOLE: Final = -1


def encode_draws(draws: NDArray[np.int32]) -> bytes:
    """Encode draws ``[n, L, m]``. The order of a tap's m draws is lost.

    A token whose draws are all −1 is a hole.

    Raises:
        ValueError: a token holds −1 among ids, or there are more draws than the codec takes.
    """
    num_taps, num_draws = draws.shape[1:]
    _validate_shape(num_taps, num_draws)
    sizes, ids, entries, counts = _find_entries(draws)
    streams = StreamWriter()
    streams.put(sizes & 255)
    streams.put(sizes >> 8)
    put_gaps(streams, sizes, gaps_of(sizes, ids))
    put_taps(streams, len(ids), entries, num_taps)
    distinct = count_distinct(rows_of(sizes, entries, num_taps))
    put_counts(streams, counts, distinct, num_draws)
    return streams.content()


def decode_draws(content: bytes, shape: tuple[int, int, int]) -> NDArray[np.int32]:
    """Decode draws ``[n, L, m]``. Those of a tap ascend.

    The shape bounds all that is allocated.

    Raises:
        ValueError: no draws of this shape have these bytes.
    """
    num_tokens, num_taps, num_draws = shape
    _validate_shape(num_taps, num_draws)
    streams = StreamReader(content)
    sizes = streams.take(num_tokens) | streams.take(num_tokens) << 8
    if (sizes > num_taps * num_draws).any():
        raise ValueError("a token has more ids than draws")
    ids = ids_of(sizes, take_gaps(streams, sizes))
    entries = take_entries(streams, len(ids), num_taps, num_tokens * num_taps * num_draws)
    if not np.bincount(entries.id_index, minlength=len(ids)).all():
        raise ValueError("an id without a tap")
    rows = rows_of(sizes, entries, num_taps)
    counts = take_counts(streams, count_distinct(rows), num_draws)
    streams.finish()
    totals = np.bincount(rows, weights=counts, minlength=num_tokens * num_taps)
    filled = np.repeat(sizes > 0, num_taps)  # a token without ids is a hole
    if (totals != np.where(filled, num_draws, 0)).any():
        raise ValueError("a tap has more or fewer draws than it should")
    by_row = np.argsort(rows, kind="stable")
    drawn = np.full((num_tokens * num_taps, num_draws), _HOLE, np.int32)
    drawn[filled] = np.repeat(ids[entries.id_index[by_row]], counts[by_row]).reshape(-1, num_draws)
    return drawn.reshape(shape)


def _find_entries(draws: NDArray[np.int32]) -> tuple[Ints, Ints, PooledEntries, Ints]:
    """Return each token's number of ids ``[n]``, the ids ``[P]``, the entries and counts ``[E]``.

    A count is how often the tap of an entry drew its id.
    """
    num_tokens, num_taps, _ = draws.shape
    holes = draws == _HOLE
    if (holes.any(axis=(1, 2)) != holes.all(axis=(1, 2))).any() or draws.min(initial=0) < _HOLE:
        raise ValueError("draws below 0 beside others")
    bound = int(draws.max(initial=0)) + 1
    token, tap = np.arange(num_tokens)[:, None, None], np.arange(num_taps)[:, None]
    # one number per token, id and tap sorts by all three at once
    keys = (token * bound + draws) * num_taps + tap
    found, counts = np.unique(keys[~holes], return_counts=True)
    pooled, id_index = np.unique(found // num_taps, return_inverse=True)
    sizes = np.bincount(pooled // bound, minlength=num_tokens)
    return sizes, pooled % bound, PooledEntries(id_index, found % num_taps), counts


def _validate_shape(num_taps: int, num_draws: int) -> None:
    if not 1 <= num_draws <= MAX_DRAWS or num_taps * num_draws > MAX_POOL:
        raise ValueError(f"{num_taps} taps of {num_draws} draws are beyond the codec")
