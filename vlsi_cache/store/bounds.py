"""What a shard may ask for before anything is allocated: hostile files are refused here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np

from vlsi_cache.store.codecs import DRAWS_CODEC
from vlsi_cache.store.layout import MAX_CHUNK_DRAWS, ArrayLayout

__all__ = ["CHUNK_BYTES", "prove_array", "prove_chunk", "prove_volume"]

CHUNK_BYTES: Final = 2**28
"""Most bytes of one decoded chunk."""

_FREE_BYTES: Final = 2**30
"""So many bytes any shard may decode to …"""
_EXPANSION: Final = 1000
"""… and beyond it, so many per byte of its file. Records of a real teacher stay under 100."""

_CODECS: Final = frozenset(
    {DRAWS_CODEC, "bytes", "crc32c", "sharding_indexed", "transpose", "zstd"}
)
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"


def prove_volume(layout: Mapping[str, ArrayLayout], num_bytes: int) -> None:
    """Refuse a shard whose arrays are too large for its file.

    Raises:
        ValueError: they would decode to more than any file of this size holds.
    """
    volume = sum(
        math.prod(array.shape) * np.dtype(array.dtype).itemsize for array in layout.values()
    )
    if volume > max(_FREE_BYTES, _EXPANSION * num_bytes):
        raise ValueError(f"its {num_bytes:,} bytes claim to hold {volume:,}")


def prove_array(name: str, metadata: Mapping[str, Any], layout: ArrayLayout) -> None:
    """Refuse an array whose chunks are unbounded, unchecked, or coded in an unknown way.

    Raises:
        ValueError: its metadata asks for more than a chunk may hold, for a codec that is not
            known to be bounded, or for no checksum.
    """
    codecs = list(_codecs(metadata["codecs"]))
    unknown = {codec["name"] for codec in codecs} - _CODECS
    if unknown:
        raise ValueError(f"{name} has a codec of unknown bounds: {', '.join(sorted(unknown))}")
    grid = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    sharded = [codec for codec in codecs if codec["name"] == "sharding_indexed"]
    chunk = sharded[0]["configuration"]["chunk_shape"] if sharded else grid
    drawn = any(codec["name"] == DRAWS_CODEC for codec in codecs)
    most = MAX_CHUNK_DRAWS if drawn else CHUNK_BYTES // np.dtype(layout.dtype).itemsize
    if math.prod(chunk) > most or min(chunk) < 1:
        raise ValueError(f"{name} has chunks of {chunk}")
    for outer, size, inner in zip(grid, layout.shape, chunk, strict=True):
        if outer >= max(size, 1) + inner:
            raise ValueError(f"{name} has files of {grid} for a shape of {layout.shape}")
    chains = [codec["configuration"] for codec in sharded] or [{"codecs": metadata["codecs"]}]
    for chain in chains:
        for part in ("codecs", "index_codecs"):
            if part in chain and chain[part][-1]["name"] != "crc32c":
                raise ValueError(f"{name} has {part} without a checksum")


def prove_chunk(content: bytes) -> None:
    """Refuse a compressed chunk that announces more than a chunk may hold.

    Raises:
        ValueError: it would expand beyond ``CHUNK_BYTES``, or does not say how far.
    """
    if not content.startswith(_ZSTD_MAGIC):
        return
    size = _zstd_content_bytes(content)
    if size is None or size > CHUNK_BYTES:
        raise ValueError(f"a chunk of {len(content):,} bytes would expand to {size or 'unknown'}")


def _codecs(tree: Any) -> Iterator[dict[str, Any]]:
    """Every codec of a chain, those inside others too."""
    for codec in tree:
        yield codec
        configuration = codec.get("configuration") or {}
        for part in ("codecs", "index_codecs"):
            yield from _codecs(configuration.get(part, ()))


def _zstd_content_bytes(frame: bytes) -> int | None:
    """Decoded size that a zstd frame's header states (RFC 8878, 3.1.1.1)."""
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
