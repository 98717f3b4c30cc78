"""The codec of draws: every id of a token once, with the taps that drew it.

Neighbouring taps draw mostly the same ids, so an id is written once for all taps. FORMAT.md
describes the bytes one by one, with a decoder of a page.

Shapes: n tokens, L taps, m draws, P distinct ids of all tokens, E entries.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlsi_cache.manifest import MAX_DRAWS, MAX_POOL
from vlsi_cache.store.shards.coding.streams import Ints, StreamReader, StreamWriter

__all__ = ["decode_draws", "encode_draws"]

_CLASSES: Final = 8
"""Number of classes that the ids of a token fall into, by their rank among them.

Ids ascend, and those of frequent tokens are small and dense. So gaps grow with the rank: each
class has its own frequencies, and its own Huffman codes."""

_HOLE: Final = -1


class _Entries(NamedTuple):
    """The pairs of an id and a tap that drew it, in the order of token, id, tap."""

    id_index: Ints
    """``[E]``: position of the id among the P ids; ascending."""
    tap_index: Ints
    """``[E]``: the tap; ascending among the entries of an id."""


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
    _put_gaps(streams, sizes, _gaps(sizes, ids))
    _put_taps(streams, len(ids), entries, num_taps)
    distinct = _count_distinct(_rows(sizes, entries, num_taps))
    _put_counts(streams, counts, distinct, num_draws)
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
    ids = _ids(sizes, _take_gaps(streams, sizes))
    entries = _take_entries(streams, len(ids), shape)
    rows = _rows(sizes, entries, num_taps)
    counts = _take_counts(streams, _count_distinct(rows), num_draws)
    streams.finish()
    totals = np.bincount(rows, weights=counts, minlength=num_tokens * num_taps)
    filled = np.repeat(sizes > 0, num_taps)  # a token without ids is a hole
    if (totals != np.where(filled, num_draws, 0)).any():
        raise ValueError("a tap has more or fewer draws than it should")
    by_row = np.argsort(rows, kind="stable")
    drawn = np.full((num_tokens * num_taps, num_draws), _HOLE, np.int32)
    drawn[filled] = np.repeat(ids[entries.id_index[by_row]], counts[by_row]).reshape(-1, num_draws)
    return drawn.reshape(shape)


def _find_entries(draws: NDArray[np.int32]) -> tuple[Ints, Ints, _Entries, Ints]:
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
    return sizes, pooled % bound, _Entries(id_index, found % num_taps), counts


def _gaps(sizes: Ints, ids: Ints) -> Ints:
    """``[P]``: each id minus the one before it minus 1; a token's first id as it is."""
    gaps = np.diff(ids, prepend=0) - 1
    first = (np.cumsum(sizes) - sizes)[sizes > 0]
    gaps[first] = ids[first]
    return gaps


def _ids(sizes: Ints, gaps: Ints) -> Ints:
    """``[P]``: the inverse of ``_gaps``."""
    # a running sum over all tokens, minus its value before each token's first id
    steps = (gaps + 1).cumsum()
    starts = np.cumsum(sizes) - sizes
    before = np.concatenate([[0], steps])[starts]
    ids: Ints = steps - np.repeat(before, sizes) - 1
    if len(ids) and ids.max() > np.iinfo(np.int32).max:
        raise ValueError("an id beyond 31 bits")
    return ids


def _put_gaps(streams: StreamWriter, sizes: Ints, gaps: Ints) -> None:
    classes = _classes(sizes)
    for number in range(_CLASSES):
        part = gaps[classes == number]
        high, low = part >> 8, part & 255
        streams.put(np.minimum(high, 255))
        streams.put(high[high >= 255].astype("<u4").view(np.uint8))
        # low bytes of short gaps are mostly small, those of long gaps are anything
        streams.put(low[high == 0])
        streams.put(low[high > 0])


def _take_gaps(streams: StreamReader, sizes: Ints) -> Ints:
    classes = _classes(sizes)
    gaps = np.empty(len(classes), np.int64)
    for number in range(_CLASSES):
        here = classes == number
        high = streams.take(int(here.sum()))
        escaped = high == 255
        high[escaped] = streams.take_bytes(4 * int(escaped.sum())).view("<u4")
        low = np.empty(len(high), np.int64)
        low[high == 0] = streams.take(int((high == 0).sum()))
        low[high > 0] = streams.take(int((high > 0).sum()))
        gaps[here] = high << 8 | low
    return gaps


def _put_taps(streams: StreamWriter, num_ids: int, entries: _Entries, num_taps: int) -> None:
    for first in range(0, num_taps, 8):
        here = (entries.tap_index >= first) & (entries.tap_index < first + 8)
        bits = np.zeros((num_ids, 8), np.uint8)
        bits[entries.id_index[here], entries.tap_index[here] - first] = 1
        streams.put(np.packbits(bits, axis=1, bitorder="little")[:, 0])


def _take_entries(streams: StreamReader, num_ids: int, shape: tuple[int, int, int]) -> _Entries:
    # Eight taps at a time, and never more entries than draws: the bits of all taps at once would
    # take memory that grows with the square of the taps.
    num_tokens, num_taps, num_draws = shape
    id_index, tap_index, remaining = [], [], num_tokens * num_taps * num_draws
    for first in range(0, num_taps, 8):
        bits = np.unpackbits(streams.take_bytes(num_ids)[:, None], axis=1, bitorder="little")
        remaining -= int(bits.sum())
        if remaining < 0 or bits[:, num_taps - first :].any():
            raise ValueError("more entries than draws, or a tap that does not exist")
        # of one axis and of bool, which is found several times as fast
        places = np.flatnonzero(bits.reshape(-1).view(np.bool_))
        id_index.append(places >> 3)
        tap_index.append((places & 7) + first)
    entries = _Entries(np.concatenate(id_index), np.concatenate(tap_index))
    if not np.bincount(entries.id_index, minlength=num_ids).all():
        raise ValueError("an id without a tap")
    by_id = np.argsort(entries.id_index, kind="stable")
    return _Entries(entries.id_index[by_id], entries.tap_index[by_id])


# A tap has m draws. If it drew d distinct ids, they share m - d further draws, so counts have
# other frequencies for every d. If d is m, every count is 1 and nothing is written.
def _put_counts(streams: StreamWriter, counts: Ints, distinct: Ints, num_draws: int) -> None:
    for number in range(1, num_draws):
        streams.put(_pack_pairs(np.minimum(counts[distinct == number] - 1, 3)))
    streams.put(counts[counts > 3] - 4)


def _take_counts(streams: StreamReader, distinct: Ints, num_draws: int) -> Ints:
    counts = np.ones(len(distinct), np.int64)
    # small integers are sorted by counting, which is faster than a search for every number
    by_number = np.argsort(np.minimum(distinct, num_draws).astype(np.uint16), kind="stable")
    ends = np.cumsum(np.bincount(distinct, minlength=num_draws))
    for number in range(1, num_draws):
        here = by_number[ends[number - 1] : ends[number]]
        counts[here] += _unpack_pairs(streams.take(-(-len(here) // 4)), len(here))
    many = counts == 4
    counts[many] += streams.take(int(many.sum()))
    return counts


def _classes(sizes: Ints) -> Ints:
    """``[P]``: class of each id, by its rank among the ids of its token."""
    rank = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    classes: Ints = rank * _CLASSES // np.repeat(sizes, sizes)
    return classes


def _rows(sizes: Ints, entries: _Entries, num_taps: int) -> Ints:
    """``[E]``: token and tap of each entry, as one number."""
    tokens = np.repeat(np.arange(len(sizes)), sizes)
    rows: Ints = tokens[entries.id_index] * num_taps + entries.tap_index
    return rows


def _count_distinct(rows: Ints) -> Ints:
    """``[E]``: how many distinct ids the tap of each entry drew at its token."""
    found: Ints = np.bincount(rows)[rows] if len(rows) else rows
    return found


def _pack_pairs(values: Ints) -> Ints:
    """Pack values below 4, four to a byte."""
    padded = np.pad(values, (0, -len(values) % 4)).reshape(-1, 4)
    packed: Ints = (padded << np.array([0, 2, 4, 6])).sum(axis=1)
    return packed


def _unpack_pairs(packed: Ints, length: int) -> Ints:
    values: Ints = (packed[:, None] >> np.array([0, 2, 4, 6]) & 3).ravel()
    if values[length:].any():
        raise ValueError("padding is not 0")
    return values[:length]


def _validate_shape(num_taps: int, num_draws: int) -> None:
    if not 1 <= num_draws <= MAX_DRAWS or num_taps * num_draws > MAX_POOL:
        raise ValueError(f"{num_taps} taps of {num_draws} draws are beyond the codec")
