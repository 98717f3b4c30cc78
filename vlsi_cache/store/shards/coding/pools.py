"""Ids of tokens, the taps that have them and their counts, as streams.

The codecs of records are made of these. Shapes: n tokens, L taps, m draws, P distinct ids of all
tokens, E entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np

from vlsi_cache.store.shards.coding.streams import Ints, StreamReader, StreamWriter

__all__ = [
    "PooledEntries",
    "count_distinct",
    "gaps_of",
    "have_common",
    "ids_of",
    "members_of",
    "merged",
    "order_of",
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


_TAP_BITS: Final = 16
"""A pool has fewer entries than numbers of so many bits, and no more taps than entries."""


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
    for here in members_of(classes, _CLASSES):
        high = streams.take(len(here))
        escaped = high == 255
        high[escaped] = streams.take_bytes(4 * int(np.count_nonzero(escaped))).view("<u4")
        is_short = high == 0
        num_short = int(np.count_nonzero(is_short))
        low = np.empty(len(high), np.int64)
        low[is_short] = streams.take(num_short)
        low[~is_short] = streams.take(len(high) - num_short)
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
    parts, remaining = [], most
    for first in range(0, num_taps, 8):
        stored = streams.take_bytes(num_ids)
        # of one axis and of bool, which is found several times as fast
        bits = np.unpackbits(stored, bitorder="little").view(np.bool_)
        remaining -= int(np.count_nonzero(bits))
        if remaining < 0 or int(stored.max(initial=0)) >> min(num_taps - first, 8):
            raise ValueError("more entries than draws, or a tap that does not exist")
        places = np.flatnonzero(bits)
        parts.append(PooledEntries(places >> 3, (places & 7) + first))
    return merged(parts)


def merged(parts: Sequence[PooledEntries]) -> PooledEntries:
    """Join several runs of entries to one, in order. Each of them must be."""
    if len(parts) == 1:
        return parts[0]
    found = _numbers(parts)
    return PooledEntries(found >> _TAP_BITS, found & (1 << _TAP_BITS) - 1)


def have_common(parts: Sequence[PooledEntries]) -> bool:
    """Report whether an entry is in two of several runs, each in order."""
    found = _numbers(parts)
    return bool((found[1:] == found[:-1]).any())


def _numbers(parts: Sequence[PooledEntries]) -> Ints:
    """``[E]``: id and tap of all entries as one number, ascending."""
    numbers = [part.id_index << _TAP_BITS | part.tap_index for part in parts]
    return np.sort(np.concatenate(numbers), kind="stable")  # merges runs


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
    groups = members_of(np.minimum(distinct, num_draws), num_draws)
    for here in groups[1:]:
        counts[here] += _unpack_pairs(streams.take(-(-len(here) // 4)), len(here))
    many = np.flatnonzero(counts == 4)
    counts[many] += streams.take(len(many))
    return counts


def members_of(classes: Ints, count: int) -> list[Ints]:
    """Return the places of each of so many classes, ascending. Greater classes are left out."""
    places = order_of(classes)
    ends = np.cumsum(np.bincount(classes, minlength=count)[:count]).tolist()
    return [places[first:stop] for first, stop in pairwise([0, *ends])]


def order_of(numbers: Ints) -> Ints:
    """Return the places of whole numbers as they ascend. Equal ones keep their order."""
    # Numbers of 8 and 16 bits are sorted by counting, several times as fast as longer ones.
    most = int(numbers.max(initial=0))
    short = np.argsort(numbers.astype(np.uint8 if most < 1 << 8 else np.uint16), kind="stable")
    if most < 1 << 16:
        return short
    order: Ints = short[np.argsort((numbers[short] >> 16).astype(np.uint16), kind="stable")]
    return order


def _classes(sizes: Ints) -> Ints:
    """``[P]``: class of each id, by its rank among the ids of its token."""
    # of 32 bits, which are divided several times as fast
    short, ends = sizes.astype(np.int32), np.cumsum(sizes, dtype=np.int32)
    rank = np.arange(sizes.sum(), dtype=np.int32) - np.repeat(ends - short, sizes)
    return (rank * np.int32(_CLASSES) // np.repeat(short, sizes)).astype(np.int64)


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
