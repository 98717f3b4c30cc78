"""The codecs of every array: chunks to bytes and back."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import zarr
from zarr.abc.codec import ArrayBytesCodec
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.registry import register_codec

from vlsi_cache.store.shards.bounds import FRAME_HEAD, validate_frame
from vlsi_cache.store.shards.coding.draws import decode_draws, encode_draws
from vlsi_cache.store.shards.coding.together import decode_together, encode_together
from vlsi_cache.store.shards.layout import (
    DRAWS_CODEC,
    TOGETHER_CODEC,
    TOGETHER_REVISION,
    ArrayLayout,
)

__all__ = [
    "BoundedZstdCodec",
    "DrawsCodec",
    "OtherRevisionError",
    "TogetherCodec",
    "bounded_array",
    "chunk_codecs",
]

_BOUNDED: Final = "vlsi-cache.bounded-zstd"
"""Name of a codec that only readers use. It is not in any file."""


@dataclass(frozen=True)
class DrawsCodec(ArrayBytesCodec):
    """Zarr codec of draws ``[n, L, m]``, without configuration.

    Its bytes are those of ``vlsi_cache.store.shards.coding.draws``.

    An entry point registers it with zarr-python wherever this library is installed.
    """

    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Make the codec from an array's metadata.

        Raises:
            ValueError: the metadata has a configuration.
        """
        if data.get("configuration"):
            raise ValueError(f"{DRAWS_CODEC} has no configuration")
        return cls()

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of an array's metadata."""
        return {"name": DRAWS_CODEC}

    def compute_encoded_size(self, input_byte_length: int, _chunk_spec: ArraySpec) -> int:
        """Refuse: the size depends on the values."""
        raise NotImplementedError

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        _validate_kind(chunk_spec, DRAWS_CODEC)
        content = await asyncio.to_thread(encode_draws, chunk_array.as_numpy_array())
        return chunk_spec.prototype.buffer.from_bytes(content)

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        shape = _validate_kind(chunk_spec, DRAWS_CODEC)
        drawn = await asyncio.to_thread(decode_draws, chunk_bytes.to_bytes(), shape)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(drawn)


class OtherRevisionError(ValueError):
    """Records are of another revision of ``TOGETHER_CODEC``. They are not damaged.

    Args:
        revision: what the array's metadata says.
    """

    def __init__(self, revision: object) -> None:
        self.found = "none" if revision is None else repr(revision)
        super().__init__(
            f"{TOGETHER_CODEC} is of revision {self.found}, expected {TOGETHER_REVISION}"
        )


@dataclass(frozen=True)
class TogetherCodec(ArrayBytesCodec):
    """Zarr codec of records ``[n, L, 2k + m + 2]``.

    Its bytes are those of ``vlsi_cache.store.shards.coding.together``. An entry point registers it.
    """

    k: int
    """Most likely tokens of a record."""

    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Make the codec from an array's metadata.

        Raises:
            OtherRevisionError: the records have other bytes than this library reads.
            ValueError: the configuration is not k and the revision.
        """
        configuration = data.get("configuration", {})
        revision = configuration.get("revision")
        if revision != TOGETHER_REVISION:
            raise OtherRevisionError(revision)
        k = configuration.get("k")
        if type(k) is not int or configuration != {"k": k, "revision": revision}:
            raise ValueError(f"{TOGETHER_CODEC} is configured by k and its revision alone")
        return cls(k)

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of an array's metadata."""
        configuration = {"k": self.k, "revision": TOGETHER_REVISION}
        return {"name": TOGETHER_CODEC, "configuration": configuration}

    def compute_encoded_size(self, input_byte_length: int, _chunk_spec: ArraySpec) -> int:
        """Refuse: the size depends on the values."""
        raise NotImplementedError

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        _validate_kind(chunk_spec, TOGETHER_CODEC)
        kept = chunk_array.as_numpy_array()
        content = await asyncio.to_thread(encode_together, kept, self.k)
        return chunk_spec.prototype.buffer.from_bytes(content)

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        shape = _validate_kind(chunk_spec, TOGETHER_CODEC)
        kept = await asyncio.to_thread(decode_together, chunk_bytes.to_bytes(), shape, self.k)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(kept)


def _validate_kind(chunk_spec: ArraySpec, name: str) -> tuple[int, int, int]:
    if len(chunk_spec.shape) != 3 or chunk_spec.dtype.to_native_dtype() != np.int32:
        raise ValueError(f"{name} is for int32 of three axes")
    tokens, taps, draws = chunk_spec.shape
    return tokens, taps, draws


class BoundedZstdCodec(ZstdCodec):
    """zstd that never decodes more than a chunk holds.

    Zarr chooses the pieces in which it fetches chunks. All of them pass here.
    """

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Make the codec from an array's metadata."""
        return cls(**data.get("configuration", {}))

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of an array's metadata."""
        return {**super().to_dict(), "name": _BOUNDED}

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        itemsize = chunk_spec.dtype.to_native_dtype().itemsize
        head = chunk_bytes[slice(0, FRAME_HEAD)].to_bytes()
        validate_frame(head, math.prod(chunk_spec.shape) * itemsize)
        return await super()._decode_single(chunk_bytes, chunk_spec)


register_codec(DRAWS_CODEC, DrawsCodec)
register_codec(TOGETHER_CODEC, TogetherCodec)
register_codec(_BOUNDED, BoundedZstdCodec)


def bounded_array(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """Return the array with codecs that keep their bounds. Its metadata must be validated."""
    metadata: Any = array.metadata.to_dict()
    (sharding,) = metadata["codecs"]
    chain = [
        {**codec, "name": _BOUNDED} if codec["name"] == "zstd" else codec
        for codec in sharding["configuration"]["codecs"]
    ]
    configuration = {**sharding["configuration"], "codecs": chain}
    metadata["codecs"] = [{**sharding, "configuration": configuration}]
    return zarr.Array(zarr.AsyncArray(metadata, array.store_path))


def chunk_codecs(array: ArrayLayout) -> dict[str, Any]:
    """Return the codecs of an array, as arguments of ``zarr.Group.create_array``.

    The checksum comes last, over the compressed bytes, so that it is verified before any decoder
    runs. Without it, a flipped byte mostly decodes to wrong numbers.
    """
    if array.together is not None:
        return {"serializer": TogetherCodec(array.together), "compressors": (Crc32cCodec(),)}
    if array.draws:
        return {"serializer": DrawsCodec(), "compressors": (Crc32cCodec(),)}
    return {"compressors": (ZstdCodec(level=3), Crc32cCodec())}
