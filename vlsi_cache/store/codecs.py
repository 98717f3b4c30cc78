"""The codecs of every array: which bytes a chunk becomes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.registry import register_codec

from vlsi_cache.store.draws import decode_draws, encode_draws
from vlsi_cache.store.layout import ArrayLayout

__all__ = ["DRAWS_CODEC", "DrawsCodec", "chunk_codecs"]

DRAWS_CODEC: Final = "vlsi-cache.draws"
"""Name of our codec in an array's metadata."""


@dataclass(frozen=True)
class DrawsCodec(ArrayBytesCodec):
    """Zarr codec of draws ``[n, L, m]`` (``vlsi_cache.store.draws``), without configuration.

    An entry point tells zarr-python of it wherever this library is installed.
    """

    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """From an array's metadata.

        Raises:
            ValueError: it has a configuration.
        """
        if data.get("configuration"):
            raise ValueError(f"{DRAWS_CODEC} has no configuration")
        return cls()

    def to_dict(self) -> dict[str, Any]:
        """For an array's metadata."""
        return {"name": DRAWS_CODEC}

    def compute_encoded_size(self, input_byte_length: int, _chunk_spec: ArraySpec) -> int:
        """Refused: it depends on the values."""
        raise NotImplementedError

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        _prove_kind(chunk_spec)
        content = await asyncio.to_thread(encode_draws, chunk_array.as_numpy_array())
        return chunk_spec.prototype.buffer.from_bytes(content)

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        shape = _prove_kind(chunk_spec)
        drawn = await asyncio.to_thread(decode_draws, chunk_bytes.to_bytes(), shape)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(drawn)


def _prove_kind(chunk_spec: ArraySpec) -> tuple[int, int, int]:
    if len(chunk_spec.shape) != 3 or chunk_spec.dtype.to_native_dtype() != np.int32:
        raise ValueError(f"{DRAWS_CODEC} is for int32 of three axes")
    tokens, taps, draws = chunk_spec.shape
    return tokens, taps, draws


register_codec(DRAWS_CODEC, DrawsCodec)


def chunk_codecs(array: ArrayLayout) -> dict[str, Any]:
    """How the chunks of an array become bytes, as ``zarr.Group.create_array`` takes it.

    The checksum comes last, over the compressed bytes: reading verifies it before a decoder sees
    them. A flipped byte in a chunk without one decodes to wrong numbers more often than not.
    """
    if array.draws:
        return {"serializer": DrawsCodec(), "compressors": (Crc32cCodec(),)}
    return {"compressors": (ZstdCodec(level=3), Crc32cCodec())}
