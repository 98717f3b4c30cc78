"""Streams of bytes, one after the other, each Huffman-coded on its own.

The codec of the draws is made of them. Values of one kind share a stream, because their
frequencies are alike. A reader knows the decoded length of every stream beforehand: it follows
from the streams before. So no length is stored, and no stream can expand beyond its own.
"""

from __future__ import annotations

import zlib
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ints", "StreamReader", "StreamWriter"]

Ints = NDArray[np.int64]

_STORED: Final = 1 << 31
"""Flag in a stream's length: its bytes are not coded."""


class StreamWriter:
    """Appends streams."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def put(self, values: NDArray[Any]) -> None:
        """Append a stream of values below 256."""
        raw = values.astype(np.uint8).tobytes()
        if not raw:
            return  # the reader knows that it is empty
        # A search for repeated bytes finds none in such values, and costs most of the time.
        # Huffman codes alone are as small. The level only sets the memory then.
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
        coded = deflate.compress(raw) + deflate.flush()
        if len(coded) < len(raw):
            self._parts.append(len(coded).to_bytes(4, "little") + coded)
        else:
            self._parts.append((len(raw) | _STORED).to_bytes(4, "little") + raw)

    def content(self) -> bytes:
        """Return all streams."""
        return b"".join(self._parts)


class StreamReader:
    """Reads streams whose decoded lengths are known.

    Args:
        content: all streams.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._position = 0

    def take(self, length: int) -> Ints:
        """Return the next stream, ``[length]``."""
        return self.take_bytes(length).astype(np.int64)

    def take_bytes(self, length: int) -> NDArray[np.uint8]:
        """Return the next stream in its stored type.

        Raises:
            ValueError: the stream has another length, or is damaged.
        """
        if not length:
            return np.empty(0, np.uint8)
        head = int.from_bytes(self._bytes(4), "little")
        coded = self._bytes(head & ~_STORED)
        raw = coded if head & _STORED else _inflate(coded, length)
        if len(raw) != length:
            raise ValueError("a stream is too short or too long")
        return np.frombuffer(raw, np.uint8)

    def finish(self) -> None:
        """Refuse bytes after the last stream.

        Raises:
            ValueError: there are some.
        """
        if self._position != len(self._content):
            raise ValueError("bytes remain after the last stream")

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
