"""Bounds of a shard: hostile files are refused before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from vlsi_cache.store.shards.layout import (
    CHUNK_BYTES,
    DRAWS_CODEC,
    MAX_CHUNK_DRAWS,
    TOGETHER_CODEC,
    TOGETHER_REVISION,
    ArrayLayout,
)

__all__ = ["FRAME_HEAD", "validate_array", "validate_frame", "validate_metadata", "validate_volume"]

_FREE_BYTES: Final = 2**30
"""Bytes that any shard may decode to."""
_EXPANSION: Final = 1000
"""Bytes that a larger shard may decode to per byte of its file. Real records stay under 100."""

_CHAINS: Final = (
    ["bytes", "crc32c"],
    ["bytes", "zstd", "crc32c"],
    [DRAWS_CODEC, "crc32c"],
    [TOGETHER_CODEC, "crc32c"],
)
"""Codecs of a chunk. Only zstd returns more bytes than it takes, and it runs once at most."""
_INDEX_CHAIN: Final = ["bytes", "crc32c"]
_INDEX_BYTES: Final = 16
"""Bytes of one chunk in the index of an entry."""
_METADATA_BYTES: Final = 2**24
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
FRAME_HEAD: Final = 18
"""Most bytes of a zstd frame's header."""


def validate_volume(layout: Mapping[str, ArrayLayout], num_bytes: int) -> None:
    """Refuse a shard whose arrays are too large for its file.

    Raises:
        ValueError: they decode to more than any file of this size holds.
    """
    volume = sum(
        math.prod(array.shape) * np.dtype(array.dtype).itemsize for array in layout.values()
    )
    if volume > max(_FREE_BYTES, _EXPANSION * num_bytes):
        raise ValueError(f"its {num_bytes:,} bytes claim to hold {volume:,}")


def validate_metadata(name: str, num_bytes: int) -> None:
    """Refuse metadata that is absurdly large.

    Raises:
        ValueError: it is too large.
    """
    if num_bytes > _METADATA_BYTES:
        raise ValueError(f"{name} is of {num_bytes:,} bytes")


def validate_array(
    name: str, metadata: Mapping[str, Any], layout: ArrayLayout, num_bytes: int
) -> None:
    """Refuse an array whose chunks are unbounded, unchecked, or coded in an unknown way.

    Args:
        name: Name of the array.
        metadata: Its Zarr metadata.
        layout: Its layout, whose shape is validated.
        num_bytes: Bytes of the shard's file.

    Raises:
        ValueError: a chunk is too large, there are more chunks than the file has room for, or the
            bounds of a codec are unknown.
    """
    chunk, chain = _validate_codecs(name, metadata["codecs"])
    grid = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    drawn = chain[0] in (DRAWS_CODEC, TOGETHER_CODEC)
    if (chain[0] == TOGETHER_CODEC) != (layout.together is not None):
        raise ValueError(f"{name} has chunks of codecs {chain}")
    if layout.together is not None:
        _validate_together(name, metadata["codecs"][0]["configuration"]["codecs"][0], layout)
    most = MAX_CHUNK_DRAWS if drawn else CHUNK_BYTES // np.dtype(layout.dtype).itemsize
    if min(chunk) < 1 or math.prod(chunk) > most:
        raise ValueError(f"{name} has chunks of {chunk}")
    for outer, size, inner in zip(grid, layout.shape, chunk, strict=True):
        if not size <= outer < max(size, 1) + inner:
            raise ValueError(f"{name} has files of {grid} for a shape of {layout.shape}")
    # Zarr lists all chunks before it looks for any of them
    num_chunks = math.prod(-(-outer // inner) for outer, inner in zip(grid, chunk, strict=True))
    if _INDEX_BYTES * num_chunks > num_bytes:
        raise ValueError(f"{name} has {num_chunks:,} chunks in a file of {num_bytes:,} bytes")


def _validate_codecs(name: str, codecs: Any) -> tuple[tuple[int, ...], list[str]]:
    """Return the shape of the chunks, and the names of their codecs."""
    outer = _names(codecs)
    if outer != ["sharding_indexed"]:
        raise ValueError(f"{name} has codecs {outer} around its chunks, not sharding_indexed")
    sharding = codecs[0]["configuration"]
    chain, index_chain = _names(sharding["codecs"]), _names(sharding["index_codecs"])
    if chain not in _CHAINS or index_chain != _INDEX_CHAIN:
        raise ValueError(
            f"{name} has chunks of codecs {chain} and an index of {index_chain}, whose bounds "
            "are not known or which lack a checksum"
        )
    if sharding["index_location"] != "end":
        raise ValueError(f"{name} has its index at the {sharding['index_location']}")
    return tuple(sharding["chunk_shape"]), chain


def _validate_together(name: str, codec: Mapping[str, Any], layout: ArrayLayout) -> None:
    wanted = {"k": layout.together, "revision": TOGETHER_REVISION}
    if codec.get("configuration") != wanted:
        raise ValueError(f"{name} is coded for another k than {layout.together}")


def _names(codecs: Any) -> list[str]:
    return [codec["name"] for codec in codecs]


def validate_frame(content: bytes, most: int) -> None:
    """Refuse a zstd frame that announces more than it may hold.

    Args:
        content: Its first ``FRAME_HEAD`` bytes.
        most: Most bytes that it may expand to.

    Raises:
        ValueError: the frame expands beyond, does not state its size, or is not a frame.
    """
    size = _zstd_content_bytes(content) if content.startswith(_ZSTD_MAGIC) else None
    if size is None or size > most:
        raise ValueError(f"a chunk of {most:,} bytes would expand to {size or 'unknown'}")


def _zstd_content_bytes(frame: bytes) -> int | None:
    """Return the decoded size that a zstd frame's header states (RFC 8878, 3.1.1.1)."""
    if len(frame) < 5:
        return None
    flags = frame[4]
    single, dictionary = flags >> 5 & 1, (0, 1, 2, 4)[flags & 3]
    width = (single, 2, 4, 8)[flags >> 6]
    start = 5 + (1 - single) + dictionary
    if width == 0 or len(frame) < start + width:
        return None
    size = int.from_bytes(frame[start : start + width], "little")
    return size + 256 if width == 2 else size
