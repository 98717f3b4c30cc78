"""The codec of records whose draws are of the whole distribution beside the most likely tokens.

A row is k most likely ids, their k levels, m draws, the entropy and the label's log-probability.
An id of a token is written once, with the taps where it is among the most likely ones, and with
those that drew it. FORMAT.md describes the bytes one by one.

Shapes: n tokens, L taps, k most likely tokens, m draws, P distinct ids of all tokens, R rows of a
token and a tap, E entries.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlsi_cache.levels import FRACTIONS, TAILS, are_levels
from vlsi_cache.manifest import MAX_DRAWS, MAX_POOL
from vlsi_cache.store.shards.coding.pools import (
    PooledEntries,
    count_distinct,
    gaps_of,
    have_common,
    ids_of,
    members_of,
    merged,
    order_of,
    put_counts,
    put_gaps,
    put_taps,
    rows_of,
    take_counts,
    take_entries,
    take_gaps,
)
from vlsi_cache.store.shards.coding.streams import Ints, StreamReader, StreamWriter

__all__ = ["CODES", "decode_together", "encode_together"]

CODES: Final = 2
"""Numbers of a row that are codes: the entropy's and the label's."""
_MOST_CODE: Final = 254
_LABEL_BOUNDS: Final = (1, 4, 8, 12, 16, 20, 24, 28, 32, 40)
"""The label's code has its own Huffman codes in classes of its code at the next tap: below the
first of these, from the first to below the second, and so on."""
_ENTROPY_LEVELS: Final = 2
"""The entropy's code has them in classes of so many levels of the tail."""

_HOLE: Final = -1
_COUNT_CLASSES: Final = 16
"""The tail's level has its own Huffman codes in so many classes of the number of draws."""
_TAILS_PER_CLASS: Final = 8
"""The level of index 1 has its own in classes of so many levels of the tail."""
_LEVELS_PER_CLASS: Final = 2
"""The others have their own in classes of so many levels of the index before."""


class _Pool(NamedTuple):
    """The ids of tokens, and the entries that are most likely, or drawn."""

    sizes: Ints
    """``[n]``: each token's number of ids."""
    ids: Ints
    """``[P]``."""
    top: PooledEntries
    drawn: PooledEntries


def encode_together(kept: NDArray[np.int32], k: int) -> bytes:
    """Encode ``[n, L, 2k + m + 2]``.

    A draw that is one of the k is forgotten, and the order of the others is. A token whose values
    are all −1 is a hole.

    Raises:
        ValueError: a token holds −1 among ids, the k are not distinct, a level does not exist, or
            there are more entries than the codec takes.
    """
    num_tokens, num_taps, width = kept.shape
    num_draws = width - 2 * k - CODES
    _validate_shape(num_taps, k, num_draws)
    filled = _find_filled(kept)
    rows = kept[filled].reshape(-1, width).astype(np.int64)
    top, levels, draws, codes = np.split(rows, [k, 2 * k, 2 * k + num_draws], axis=1)
    if not are_levels(levels) or codes.max(initial=0) > _MOST_CODE:
        raise ValueError("a level or a code does not exist")
    owners = np.repeat(np.flatnonzero(filled), num_taps)
    taps = np.tile(np.arange(num_taps), int(filled.sum()))
    is_drawn = (draws[:, :, None] != top[:, None]).all(-1)
    pool, counts = _pooled(top, draws, is_drawn, owners * num_taps + taps, (num_tokens, num_taps))
    streams = StreamWriter()
    _put_pool(streams, pool, num_taps)
    _put_order(streams, top.argsort(1).argsort(1))
    drawn_rows = rows_of(pool.sizes, pool.drawn, num_taps)
    put_counts(streams, counts, count_distinct(drawn_rows), num_draws)
    _put_levels(streams, levels, is_drawn.sum(1), num_draws)
    _put_codes(streams, codes, levels[:, 0], num_taps)
    return streams.content()


def _pooled(
    top: Ints,
    draws: Ints,
    is_drawn: NDArray[np.bool_],
    places: Ints,
    shape: tuple[int, int],
) -> tuple[_Pool, Ints]:
    """Join what the taps of a token hold, and count how often each drawn entry was drawn.

    Args:
        top: ``[R, k]``, ids of the most likely.
        draws: ``[R, m]``, ids of the draws.
        is_drawn: ``[R, m]``, whether a draw is none of the k.
        places: ``[R]``, token · L + tap of each row.
        shape: n tokens and L taps.

    Raises:
        ValueError: the k are not distinct.
    """
    num_tokens, num_taps = shape
    owners, taps = np.divmod(places, num_taps)
    row, _ = np.nonzero(is_drawn)
    bound = int(max(top.max(initial=0), draws.max(initial=0))) + 1
    likely = (owners[:, None] * bound + top).ravel()
    drawn, counts = np.unique(
        (owners[row] * bound + draws[is_drawn]) * num_taps + taps[row], return_counts=True
    )
    # np.unique would hash, which takes ten times as long as sorting
    both = np.sort(np.concatenate([likely, drawn // num_taps]))
    pooled = both[np.diff(both, prepend=-1) > 0]
    likely_at = np.sort(np.searchsorted(pooled, likely) * num_taps + np.repeat(taps, top.shape[1]))
    if (np.diff(likely_at) == 0).any():
        raise ValueError("the most likely ids are not distinct")
    pool = _Pool(
        np.bincount(pooled // bound, minlength=num_tokens),
        pooled % bound,
        PooledEntries(likely_at // num_taps, likely_at % num_taps),
        PooledEntries(np.searchsorted(pooled, drawn // num_taps), drawn % num_taps),
    )
    return pool, counts


def decode_together(content: bytes, shape: tuple[int, int, int], k: int) -> NDArray[np.int32]:
    """Decode ``[n, L, 2k + m + 2]``. Draws ascend.

    Those of the k most likely follow as the likeliest.

    The shape bounds all that is allocated.

    Raises:
        ValueError: no record of this shape has these bytes.
    """
    _, num_taps, width = shape
    num_draws = width - 2 * k - CODES
    _validate_shape(num_taps, k, num_draws)
    streams = StreamReader(content)
    pool = _take_pool(streams, shape, k)
    filled = pool.sizes > 0  # a token without ids is a hole
    rows = np.repeat(filled, num_taps)
    num_rows = int(rows.sum())
    likely = rows_of(pool.sizes, pool.top, num_taps)
    per_row = np.bincount(likely, minlength=len(rows))
    if (per_row != np.where(rows, k, 0)).any():
        raise ValueError("a tap has more or fewer most likely ids than it should")
    ascending = pool.ids[pool.top.id_index[order_of(likely)]].reshape(-1, k)
    top = np.take_along_axis(ascending, _take_order(streams, num_rows, k), 1)
    drawn_rows = rows_of(pool.sizes, pool.drawn, num_taps)
    counts = take_counts(streams, count_distinct(drawn_rows), num_draws)
    totals = np.bincount(drawn_rows, weights=counts, minlength=len(rows)).astype(np.int64)
    if (totals > num_draws).any():
        raise ValueError("a tap has more draws than it should")
    levels = _take_levels(streams, totals[rows], k, num_draws)
    codes = _take_codes(streams, levels[:, 0], num_taps)
    streams.finish()
    filled_rows = np.empty((num_rows, width), np.int32)
    filled_rows[:, :k], filled_rows[:, k : 2 * k] = top, levels
    draws = filled_rows[:, 2 * k : -CODES]
    draws[:], filled_rows[:, -CODES:] = top[:, :1], codes
    by_row = order_of(drawn_rows)
    is_drawn = np.arange(num_draws) < totals[rows][:, None]
    draws[is_drawn] = np.repeat(pool.ids[pool.drawn.id_index[by_row]], counts[by_row])
    return _with_holes(filled_rows, rows).reshape(shape)


def _with_holes(filled: NDArray[np.int32], rows: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Put the filled rows into their places, and holes into the others."""
    if len(filled) == len(rows):
        return filled
    kept = np.full((len(rows), filled.shape[1]), _HOLE, np.int32)
    kept[rows] = filled
    return kept


def _find_filled(kept: NDArray[np.int32]) -> NDArray[np.bool_]:
    holes = kept == _HOLE
    filled: NDArray[np.bool_] = ~holes.all(axis=(1, 2))
    if holes[filled].any() or kept.min(initial=0) < _HOLE:
        raise ValueError("ids or levels below 0 beside others")
    return filled


# The taps of an id where it is among the most likely ones come first. Its draws are then coded
# apart from those of ids that never are, which every tap must have drawn or not.
def _put_pool(streams: StreamWriter, pool: _Pool, num_taps: int) -> None:
    streams.put(pool.sizes & 255)
    streams.put(pool.sizes >> 8)
    put_gaps(streams, pool.sizes, gaps_of(pool.sizes, pool.ids))
    put_taps(streams, len(pool.ids), pool.top, num_taps)
    for members in _parts(pool.top, len(pool.ids)):
        here = np.isin(pool.drawn.id_index, members)
        index = np.searchsorted(members, pool.drawn.id_index[here])
        put_taps(streams, len(members), PooledEntries(index, pool.drawn.tap_index[here]), num_taps)


def _take_pool(streams: StreamReader, shape: tuple[int, int, int], k: int) -> _Pool:
    num_tokens, num_taps, width = shape
    num_draws = width - 2 * k - CODES
    sizes = streams.take(num_tokens) | streams.take(num_tokens) << 8
    if (sizes > num_taps * (k + num_draws)).any():
        raise ValueError("a token has more ids than entries")
    ids = ids_of(sizes, take_gaps(streams, sizes))
    rows = num_tokens * num_taps
    top = take_entries(streams, len(ids), num_taps, rows * k)
    never, likely = _parts(top, len(ids))
    others = take_entries(streams, len(never), num_taps, rows * num_draws)
    again = take_entries(streams, len(likely), num_taps, rows * num_draws)
    if not np.bincount(others.id_index, minlength=len(never)).all():
        raise ValueError("an id without a tap")
    again = PooledEntries(likely[again.id_index], again.tap_index)
    if have_common([top, again]):
        raise ValueError("a tap drew one of its most likely ids")
    drawn = merged([PooledEntries(never[others.id_index], others.tap_index), again])
    return _Pool(sizes, ids, top, drawn)


def _parts(top: PooledEntries, num_ids: int) -> tuple[Ints, Ints]:
    """Return the ids that are never among the most likely ones, and those that are."""
    likely = np.bincount(top.id_index, minlength=num_ids) > 0
    return np.flatnonzero(~likely), np.flatnonzero(likely)


# The ids of a row ascend in the pool. Digit r is the place of the id of rank r among those of the
# ranks from r on. It is below k − r. Digits share a byte as long as it has room for them.
def _put_order(streams: StreamWriter, places: Ints) -> None:
    k = places.shape[1]
    digits = places.copy()
    for rank in range(1, k):
        digits[:, rank] -= (places[:, :rank] < places[:, rank : rank + 1]).sum(1)
    for first, stop in _groups(k):
        value = np.zeros(len(places), np.int64)
        for rank in range(first, stop):
            value = value * (k - rank) + digits[:, rank]
        streams.put(value)


def _take_order(streams: StreamReader, num_rows: int, k: int) -> Ints:
    """``[R, k]``: place of the id of each rank among the row's ascending ids."""
    places = np.zeros((num_rows, k), np.int64)
    for first, stop in _groups(k):
        stored, value = streams.take_bytes(num_rows), np.arange(256)
        digits = np.empty((256, stop - first), np.int64)
        for rank in range(stop - 1, first - 1, -1):
            digits[:, rank - first] = value % (k - rank)
            value = value // (k - rank)
        if value[stored].any():
            raise ValueError("an order that does not exist")
        places[:, first:stop] = digits[stored]
    for rank in range(k - 2, -1, -1):
        places[:, rank + 1 :] += places[:, rank + 1 :] >= places[:, rank : rank + 1]
    return places


def _groups(k: int) -> list[tuple[int, int]]:
    """Return the runs of digits that share a byte. The last digit is always 0 and in none."""
    starts, room = [0], 256
    for rank in range(k - 1):
        if room < k - rank:
            starts.append(rank)
            room = 256
        room //= k - rank
    return [(first, stop) for first, stop in pairwise([*starts, k - 1]) if stop > first]


def _put_levels(streams: StreamWriter, levels: Ints, counts: Ints, num_draws: int) -> None:
    classes = counts * _COUNT_CLASSES // num_draws
    for number in range(_COUNT_CLASSES + 1):
        streams.put(levels[classes == number, 0])
    for rank in range(1, levels.shape[1]):
        classes, count = _level_classes(levels, rank)
        for number in range(count):
            streams.put(levels[classes == number, rank])


def _take_levels(streams: StreamReader, counts: Ints, k: int, num_draws: int) -> Ints:
    levels = np.zeros((len(counts), k), np.int64)
    levels[:, 0] = _take_by_class(streams, counts * _COUNT_CLASSES // num_draws, _COUNT_CLASSES + 1)
    if (levels[:, 0] >= len(TAILS)).any():
        raise ValueError("a level of the tail that does not exist")
    for rank in range(1, k):
        levels[:, rank] = _take_by_class(streams, *_level_classes(levels, rank))
        if (levels[:, rank] >= len(FRACTIONS)).any():
            raise ValueError("a level that does not exist")
    return levels


def _take_by_class(streams: StreamReader, classes: Ints, count: int) -> Ints:
    """Take a number for each place, ``[R]``. Every class has a stream."""
    values = np.empty(len(classes), np.int64)
    for here in members_of(classes, count):
        values[here] = streams.take_bytes(len(here))
    return values


def _level_classes(levels: Ints, rank: int) -> tuple[Ints, int]:
    """Return the class ``[R]`` of each level of an index above 0, and the number of classes."""
    size, table = (_TAILS_PER_CLASS, TAILS) if rank == 1 else (_LEVELS_PER_CLASS, FRACTIONS)
    return levels[:, rank - 1] // size, -(-len(table) // size)


def _put_codes(streams: StreamWriter, codes: Ints, tails: Ints, num_taps: int) -> None:
    classes = tails // _ENTROPY_LEVELS
    for number in range(-(-len(TAILS) // _ENTROPY_LEVELS)):
        streams.put(codes[classes == number, 0])
    labels = codes[:, 1].reshape(-1, num_taps).T[::-1]
    streams.put(labels[0])
    classes, below = _label_classes(labels[:-1].ravel()), labels[1:].ravel()
    if len(below):
        sizes = np.bincount(classes, minlength=len(_LABEL_BOUNDS) + 1)
        streams.put(sizes.astype("<u4").view(np.uint8))
    for number in range(len(_LABEL_BOUNDS) + 1):
        streams.put(below[classes == number])


def _take_codes(streams: StreamReader, tails: Ints, num_taps: int) -> Ints:
    count = -(-len(TAILS) // _ENTROPY_LEVELS)
    entropy = _take_by_class(streams, tails // _ENTROPY_LEVELS, count)
    labels = _take_labels(streams, len(tails) // num_taps, num_taps)
    codes = np.stack([entropy, labels.ravel()], 1)
    if (codes > _MOST_CODE).any():
        raise ValueError("a code that does not exist")
    return codes


def _take_labels(streams: StreamReader, num_tokens: int, num_taps: int) -> Ints:
    """``[n, L]``: the label's codes."""
    labels = np.zeros((num_tokens, num_taps), np.int64)
    labels[:, -1] = streams.take(num_tokens)
    num_below, num_classes = num_tokens * (num_taps - 1), len(_LABEL_BOUNDS) + 1
    if not num_below:
        return labels
    sizes = streams.take_bytes(4 * num_classes).view("<u4").astype(np.int64)
    if sizes.sum() != num_below:
        raise ValueError("classes of the label's code are too large or too small")
    parts = [streams.take(size) for size in sizes.tolist()]
    # A class is known once the tap after it is, so all classes are read tap by tap.
    for tap in range(num_taps - 2, -1, -1):
        classes = _label_classes(labels[:, tap + 1])
        for number, part in enumerate(parts):
            here = classes == number
            count = int(here.sum())
            if count > len(part):
                raise ValueError("a class of the label's code is too small")
            labels[here, tap], parts[number] = part[:count], part[count:]
    return labels


def _label_classes(later: Ints) -> Ints:
    return np.searchsorted(_LABEL_BOUNDS, later, side="right").astype(np.int64)


def _validate_shape(num_taps: int, k: int, num_draws: int) -> None:
    within = 1 <= num_draws <= MAX_DRAWS and 1 <= k <= MAX_DRAWS
    if not within or num_taps * (k + num_draws) > MAX_POOL:
        raise ValueError(f"{num_taps} taps of {k} + {num_draws} entries are beyond the codec")
