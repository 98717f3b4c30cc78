"""Draws of neighbouring taps as bytes: every id of a token once, with the taps that drew it.

FORMAT.md describes the bytes one by one, with a decoder of a page.
"""

from __future__ import annotations

import zlib
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlsi_cache.manifest import MAX_DRAWS, MAX_POOL

__all__ = ["decode_draws", "encode_draws"]

Ints = NDArray[np.int64]

_CLASSES: Final = 8
"""Ids of a token fall into so many classes by their rank among them: gaps grow with the ids."""
_STORED: Final = 1 << 31
_HOLE: Final = -1


class _Pool(NamedTuple):
    """The distinct ids of each token, and the entries (id, tap) with how often they were drawn."""

    sizes: Ints
    """[n]: distinct ids of a token, U."""
    gaps: Ints
    """[P]: an id minus the id before it minus 1; a token's first is itself."""
    places: Ints
    """[E]: the id of each entry, as its place among the P; ascending."""
    taps: Ints
    """[E]: the tap that drew it; ascending among the entries of an id."""
    counts: Ints
    """[E]: how often."""


def encode_draws(draws: NDArray[np.int32]) -> bytes:
    """Bytes of draws ``[n, L, m]``; the order of a tap's m draws is not kept.

    A token whose draws are all −1 is a hole.

    Raises:
        ValueError: a token holds −1 among ids, or there are more draws than the codec knows.
    """
    num_taps, num_draws = draws.shape[1:]
    _prove_shape(num_taps, num_draws)
    pool = _pool(draws)
    streams = _Packer()
    streams.put(pool.sizes & 255)
    streams.put(pool.sizes >> 8)
    classes = _classes(pool.sizes)
    for index in range(_CLASSES):
        gaps = pool.gaps[classes == index]
        high, low = gaps >> 8, gaps & 255
        streams.put(np.minimum(high, 255))
        streams.put(high[high >= 255].astype("<u4").view(np.uint8))
        streams.put(low[high == 0])
        streams.put(low[high > 0])
    for first in range(0, num_taps, 8):
        here = (pool.taps >= first) & (pool.taps < first + 8)
        bits = np.zeros((len(pool.gaps), 8), np.uint8)
        bits[pool.places[here], pool.taps[here] - first] = 1
        streams.put(np.packbits(bits, axis=1, bitorder="little")[:, 0])
    distinct = _distinct(_rows(pool, num_taps))
    for number in range(1, num_draws):
        streams.put(_pack_pairs(np.minimum(pool.counts[distinct == number] - 1, 3)))
    streams.put(pool.counts[pool.counts > 3] - 4)
    return streams.content()


def decode_draws(content: bytes, shape: tuple[int, int, int]) -> NDArray[np.int32]:
    """Draws ``[n, L, m]``, those of a tap ascending.

    Nothing is allocated beyond what the shape asks for.

    Raises:
        ValueError: the bytes are not those of any draws of this shape.
    """
    num_tokens, num_taps, num_draws = shape
    _prove_shape(num_taps, num_draws)
    streams = _Unpacker(content)
    sizes = streams.take(num_tokens) | streams.take(num_tokens) << 8
    if (sizes > num_taps * num_draws).any():
        raise ValueError("a token has more ids than draws")
    ids = _take_ids(streams, sizes)
    places, taps = _take_entries(streams, len(ids), shape)
    rows = _rows(_Pool(sizes, ids, places, taps, taps), num_taps)
    counts = _take_counts(streams, _distinct(rows), num_draws)
    streams.finish()
    return _lay_out(ids, _Pool(sizes, ids, places, taps, counts), shape)


def _pool(draws: NDArray[np.int32]) -> _Pool:
    num_tokens, num_taps, _ = draws.shape
    holes = draws == _HOLE
    if (holes.any(axis=(1, 2)) != holes.all(axis=(1, 2))).any() or draws.min(initial=0) < _HOLE:
        raise ValueError("draws below 0 beside others")
    bound = int(draws.max(initial=0)) + 1
    token, tap = np.arange(num_tokens)[:, None, None], np.arange(num_taps)[:, None]
    keys = (token * bound + draws) * num_taps + tap
    entries, counts = np.unique(keys[~holes], return_counts=True)
    owners, tap_of = entries // num_taps, entries % num_taps
    pooled, place = np.unique(owners, return_inverse=True)
    sizes = np.bincount(pooled // bound, minlength=num_tokens)
    ids = pooled % bound
    gaps = np.diff(ids, prepend=0) - 1
    first = (np.cumsum(sizes) - sizes)[sizes > 0]
    gaps[first] = ids[first]
    return _Pool(sizes, gaps, place, tap_of, counts)


def _take_ids(streams: _Unpacker, sizes: Ints) -> Ints:
    classes = _classes(sizes)
    gaps = np.empty(len(classes), np.int64)
    for index in range(_CLASSES):
        here = classes == index
        high = streams.take(int(here.sum()))
        escaped = high == 255
        wide = streams.take_bytes(4 * int(escaped.sum())).view("<u4")
        high[escaped] = wide
        low = np.empty(len(high), np.int64)
        low[high == 0] = streams.take(int((high == 0).sum()))
        low[high > 0] = streams.take(int((high > 0).sum()))
        gaps[here] = high << 8 | low
    # a running sum over all tokens, less what it was before each token's first id
    steps = (gaps + 1).cumsum()
    starts = np.cumsum(sizes) - sizes
    before = np.concatenate([[0], steps])[starts]
    ids: Ints = steps - np.repeat(before, sizes) - 1
    if len(ids) and ids.max() > np.iinfo(np.int32).max:
        raise ValueError("an id beyond 31 bits")
    return ids


def _take_entries(
    streams: _Unpacker, num_ids: int, shape: tuple[int, int, int]
) -> tuple[Ints, Ints]:
    """Place and tap of every entry.

    Stream by stream, and never more entries than draws: all bits at once would take the square of
    the taps.
    """
    num_tokens, num_taps, num_draws = shape
    places, taps, left = [], [], num_tokens * num_taps * num_draws
    for first in range(0, num_taps, 8):
        bits = np.unpackbits(streams.take_bytes(num_ids)[:, None], axis=1, bitorder="little")
        left -= int(bits.sum())
        if left < 0 or bits[:, num_taps - first :].any():
            raise ValueError("more entries than draws, or of a tap that is not there")
        place, tap = np.nonzero(bits)
        places.append(place)
        taps.append(tap + first)
    place, tap = np.concatenate(places), np.concatenate(taps)
    if not np.bincount(place, minlength=num_ids).all():
        raise ValueError("an id without a tap")
    by_place = np.argsort(place, kind="stable")
    return place[by_place], tap[by_place]


def _take_counts(streams: _Unpacker, distinct: Ints, num_draws: int) -> Ints:
    counts = np.ones(len(distinct), np.int64)
    for number in range(1, num_draws):
        here = distinct == number
        counts[here] += _unpack_pairs(streams.take(-(-int(here.sum()) // 4)), int(here.sum()))
    many = counts == 4
    counts[many] += streams.take(int(many.sum()))
    return counts


def _lay_out(ids: Ints, pool: _Pool, shape: tuple[int, int, int]) -> NDArray[np.int32]:
    """Entries as ``[n, L, m]``; tokens without ids are holes."""
    num_tokens, num_taps, num_draws = shape
    row = _rows(pool, num_taps)
    totals = np.bincount(row, weights=pool.counts, minlength=num_tokens * num_taps)
    filled = np.repeat(pool.sizes > 0, num_taps)
    if (totals != np.where(filled, num_draws, 0)).any():
        raise ValueError("a tap has more or fewer draws than it should")
    by_row = np.argsort(row, kind="stable")
    drawn = np.full((num_tokens * num_taps, num_draws), _HOLE, np.int32)
    drawn[filled] = np.repeat(ids[pool.places[by_row]], pool.counts[by_row]).reshape(-1, num_draws)
    return drawn.reshape(shape)


def _classes(sizes: Ints) -> Ints:
    """[P]: class of each id, by its rank among the ids of its token."""
    rank = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    classes: Ints = rank * _CLASSES // np.repeat(sizes, sizes)
    return classes


def _rows(pool: _Pool, num_taps: int) -> Ints:
    """[E]: token and tap of each entry, as one number."""
    tokens = np.repeat(np.arange(len(pool.sizes)), pool.sizes)
    rows: Ints = tokens[pool.places] * num_taps + pool.taps
    return rows


def _distinct(rows: Ints) -> Ints:
    """[E]: how many distinct ids the tap of each entry drew at its token."""
    found: Ints = np.bincount(rows)[rows] if len(rows) else rows
    return found


def _pack_pairs(values: Ints) -> Ints:
    padded = np.pad(values, (0, -len(values) % 4)).reshape(-1, 4)
    packed: Ints = (padded << np.array([0, 2, 4, 6])).sum(axis=1)
    return packed


def _unpack_pairs(packed: Ints, length: int) -> Ints:
    values: Ints = (packed[:, None] >> np.array([0, 2, 4, 6]) & 3).ravel()
    if values[length:].any():
        raise ValueError("padding is not 0")
    return values[:length]


def _prove_shape(num_taps: int, num_draws: int) -> None:
    if not 1 <= num_draws <= MAX_DRAWS or num_taps * num_draws > MAX_POOL:
        raise ValueError(f"{num_taps} taps of {num_draws} draws are beyond the codec")


class _Packer:
    """Streams of bytes, each Huffman-coded by itself: other values, other frequencies."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def put(self, values: NDArray[Any]) -> None:
        raw = values.astype(np.uint8).tobytes()
        if not raw:
            return  # its length is known, so nothing need be said
        # matches do not occur; without them a level only sets the memory
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
        coded = deflate.compress(raw) + deflate.flush()
        if len(coded) < len(raw):
            self._parts.append(len(coded).to_bytes(4, "little") + coded)
        else:
            self._parts.append((len(raw) | _STORED).to_bytes(4, "little") + raw)

    def content(self) -> bytes:
        return b"".join(self._parts)


class _Unpacker:
    """Streams whose decoded lengths are known, so that none can expand beyond it."""

    def __init__(self, content: bytes) -> None:
        self._content, self._position = content, 0

    def take(self, length: int) -> Ints:
        """The next stream, ``[length]``."""
        return self.take_bytes(length).astype(np.int64)

    def take_bytes(self, length: int) -> NDArray[np.uint8]:
        """The next stream as it is stored."""
        if not length:
            return np.empty(0, np.uint8)
        head = int.from_bytes(self._bytes(4), "little")
        coded = self._bytes(head & ~_STORED)
        raw = coded if head & _STORED else _inflate(coded, length)
        if len(raw) != length:
            raise ValueError("a stream is too short or too long")
        return np.frombuffer(raw, np.uint8)

    def finish(self) -> None:
        if self._position != len(self._content):
            raise ValueError("bytes are left over")

    def _bytes(self, length: int) -> bytes:
        part = self._content[self._position : self._position + length]
        if len(part) != length:
            raise ValueError("the bytes end too early")
        self._position += length
        return part


def _inflate(coded: bytes, length: int) -> bytes:
    inflate = zlib.decompressobj(-15)
    try:
        raw = inflate.decompress(coded, length)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not inflate.eof or inflate.unused_data:
        # at its bound zlib stops before it sees the end of the stream
        rest = inflate.decompress(inflate.unconsumed_tail, 1)
        if rest or not inflate.eof or inflate.unused_data:
            raise ValueError("a stream is too short or too long")
    return raw
