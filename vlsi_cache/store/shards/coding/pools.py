"""Ids of tokens, the taps that have them and their counts, as streams.

The codecs of records are made of these. Shapes: n tokens, L taps, m draws, P distinct ids of all
tokens, E entries.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from vlsi_cache.store.shards.coding.streams import Ints, StreamReader, StreamWriter

__all__ = [
    "PooledEntries",
    "count_distinct",
    "gaps_of",
    "ids_of",
    "put_counts",
    "put_gaps",
    "put_taps",
    "rows_of",
    "take_counts",
    "take_entries",
    "take_gaps",
]

_CLASSES: Final = 8
"""Number of classes that the ids of a token fall into, by their rank among them.

Ids ascend, and those of frequent tokens are small and dense. So gaps grow with the rank: each
class has its own frequencies, and its own Huffman codes."""


class PooledEntries(NamedTuple):
    """The pairs of an id and a tap that has it, in the order of token, id, tap."""

    id_index: Ints
    """``[E]``: position of the id among the P ids; ascending."""
    tap_index: Ints
    """``[E]``: the tap; ascending among the entries of an id."""


def gaps_of(sizes: Ints, ids: Ints) -> Ints:
    """``[P]``: each id minus the one before it minus 1; a token's first id as it is."""
    gaps = np.diff(ids, prepend=0) - 1
    first = (np.cumsum(sizes) - sizes)[sizes > 0]
    gaps[first] = ids[first]
    return gaps


def ids_of(sizes: Ints, gaps: Ints) -> Ints:
    """``[P]``: the inverse of ``gaps_of``."""
    # a running sum over all tokens, minus its value before each token's first id
    steps = (gaps + 1).cumsum()
    starts = np.cumsum(sizes) - sizes
    before = np.concatenate([[0], steps])[starts]
    ids: Ints = steps - np.repeat(before, sizes) - 1
    if len(ids) and ids.max() > np.iinfo(np.int32).max:
        raise ValueError("an id beyond 31 bits")
    return ids


def put_gaps(streams: StreamWriter, sizes: Ints, gaps: Ints) -> None:
    """Put the gaps ``[P]`` of the ids."""
    classes = _classes(sizes)
    for number in range(_CLASSES):
        part = gaps[classes == number]
        high, low = part >> 8, part & 255
        streams.put(np.minimum(high, 255))
        streams.put(high[high >= 255].astype("<u4").view(np.uint8))
        # low bytes of short gaps are mostly small, those of long gaps are anything
        streams.put(low[high == 0])
        streams.put(low[high > 0])


def take_gaps(streams: StreamReader, sizes: Ints) -> Ints:
    """Take the gaps ``[P]`` of the ids."""
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


def put_taps(streams: StreamWriter, num_ids: int, entries: PooledEntries, num_taps: int) -> None:
    """Put the taps of so many ids, a bit for each."""
    for first in range(0, num_taps, 8):
        here = (entries.tap_index >= first) & (entries.tap_index < first + 8)
        bits = np.zeros((num_ids, 8), np.uint8)
        bits[entries.id_index[here], entries.tap_index[here] - first] = 1
        streams.put(np.packbits(bits, axis=1, bitorder="little")[:, 0])


def take_entries(streams: StreamReader, num_ids: int, num_taps: int, most: int) -> PooledEntries:
    """Take the taps of so many ids, which ``put_taps`` wrote.

    Raises:
        ValueError: there are more entries than ``most``, or a tap does not exist.
    """
    # Eight taps at a time, and never more entries than draws: the bits of all taps at once would
    # take memory that grows with the square of the taps.
    id_index, tap_index, remaining = [], [], most
    for first in range(0, num_taps, 8):
        bits = np.unpackbits(streams.take_bytes(num_ids)[:, None], axis=1, bitorder="little")
        remaining -= int(bits.sum())
        if remaining < 0 or bits[:, num_taps - first :].any():
            raise ValueError("more entries than draws, or a tap that does not exist")
        # of one axis and of bool, which is found several times as fast
        places = np.flatnonzero(bits.reshape(-1).view(np.bool_))
        id_index.append(places >> 3)
        tap_index.append((places & 7) + first)
    entries = PooledEntries(np.concatenate(id_index), np.concatenate(tap_index))
    by_id = np.argsort(entries.id_index, kind="stable")
    return PooledEntries(entries.id_index[by_id], entries.tap_index[by_id])


# A tap has m draws. If it drew d distinct ids, they share m - d further draws, so counts have
# other frequencies for every d. If d is m, every count is 1 and nothing is written.
def put_counts(streams: StreamWriter, counts: Ints, distinct: Ints, num_draws: int) -> None:
    """Put how often the tap of each entry ``[E]`` drew its id."""
    for number in range(1, num_draws):
        streams.put(_pack_pairs(np.minimum(counts[distinct == number] - 1, 3)))
    streams.put(counts[counts > 3] - 4)


def take_counts(streams: StreamReader, distinct: Ints, num_draws: int) -> Ints:
    """Take how often the tap of each entry ``[E]`` drew its id."""
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


def rows_of(sizes: Ints, entries: PooledEntries, num_taps: int) -> Ints:
    """``[E]``: token and tap of each entry, as one number."""
    tokens = np.repeat(np.arange(len(sizes)), sizes)
    rows: Ints = tokens[entries.id_index] * num_taps + entries.tap_index
    return rows


def count_distinct(rows: Ints) -> Ints:
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
