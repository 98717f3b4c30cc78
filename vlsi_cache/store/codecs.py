"""The codecs of every array: which bytes a chunk becomes."""

from __future__ import annotations

from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import Crc32cCodec, ZstdCodec

__all__ = ["chunk_codecs"]


def chunk_codecs() -> tuple[BytesBytesCodec, ...]:
    """Codecs of a chunk in the order of writing; both are part of Zarr v3 itself.

    The checksum comes last, over the compressed bytes: reading verifies it before zstd sees them.
    A flipped byte in a chunk without one decodes to wrong numbers more often than not.
    """
    return (ZstdCodec(level=3), Crc32cCodec())
