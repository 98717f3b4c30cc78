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
    taps: NDArray[np.bool_]
    """[P, L]: which taps drew the id."""
    counts: Ints
    """[E]: how often, for each tap of each id."""


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
    for byte in np.packbits(pool.taps, axis=1, bitorder="little").T:
        streams.put(byte)
    distinct = _distinct(pool.sizes, pool.taps)
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
    size = len(ids)
    packed = np.stack([streams.take(size) for _ in range(-(-num_taps // 8))], axis=1)
    bits = np.unpackbits(packed.astype(np.uint8), axis=1, bitorder="little")
    if not bits[:, :num_taps].any(axis=1).all() or bits[:, num_taps:].any():
        raise ValueError("an id without a tap, or of a tap that is not there")
    taps = bits[:, :num_taps].astype(bool)
    counts = _take_counts(streams, _distinct(sizes, taps), num_draws)
    streams.finish()
    return _lay_out(ids, _Pool(sizes, ids, taps, counts), shape)


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
    taps = np.zeros((len(pooled), num_taps), bool)
    taps[place, tap_of] = True
    sizes = np.bincount(pooled // bound, minlength=num_tokens)
    ids = pooled % bound
    gaps = np.diff(ids, prepend=0) - 1
    first = (np.cumsum(sizes) - sizes)[sizes > 0]
    gaps[first] = ids[first]
    return _Pool(sizes, gaps, taps, counts)


def _take_ids(streams: _Unpacker, sizes: Ints) -> Ints:
    classes = _classes(sizes)
    gaps = np.empty(len(classes), np.int64)
    for index in range(_CLASSES):
        here = classes == index
        high = streams.take(int(here.sum()))
        escaped = high == 255
        wide = streams.take(4 * int(escaped.sum())).astype(np.uint8).view("<u4")
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
    place, tap = np.nonzero(pool.taps)
    row = np.repeat(np.arange(num_tokens), pool.sizes)[place] * num_taps + tap
    totals = np.bincount(row, weights=pool.counts, minlength=num_tokens * num_taps)
    filled = np.repeat(pool.sizes > 0, num_taps)
    if (totals != np.where(filled, num_draws, 0)).any():
        raise ValueError("a tap has more or fewer draws than it should")
    by_row = np.argsort(row, kind="stable")
    drawn = np.full((num_tokens * num_taps, num_draws), _HOLE, np.int32)
    drawn[filled] = np.repeat(ids[place[by_row]], pool.counts[by_row]).reshape(-1, num_draws)
    return drawn.reshape(shape)


def _classes(sizes: Ints) -> Ints:
    """[P]: class of each id, by its rank among the ids of its token."""
    rank = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    classes: Ints = rank * _CLASSES // np.repeat(sizes, sizes)
    return classes


def _distinct(sizes: Ints, taps: NDArray[np.bool_]) -> Ints:
    """[E]: how many distinct ids the tap of each entry drew at its token."""
    num_taps = taps.shape[1]
    place, tap = np.nonzero(taps)
    row = np.repeat(np.arange(len(sizes)), sizes)[place] * num_taps + tap
    found: Ints = np.bincount(row, minlength=len(sizes) * num_taps)[row]
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
        if not length:
            return np.empty(0, np.int64)
        head = int.from_bytes(self._bytes(4), "little")
        coded = self._bytes(head & ~_STORED)
        raw = coded if head & _STORED else _inflate(coded, length)
        if len(raw) != length:
            raise ValueError("a stream is too short or too long")
        return np.frombuffer(raw, np.uint8).astype(np.int64)

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
