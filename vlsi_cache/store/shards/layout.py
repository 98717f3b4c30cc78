"""The arrays of a shard: their names, types, shapes and chunks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from vlsi_cache.manifest import CacheManifest

__all__ = [
    "CHUNK_BYTES",
    "CHUNK_TOKENS",
    "CODE_HOLE",
    "DRAWS_CODEC",
    "LOG_PROB_FLOOR",
    "MAX_CHUNK_DRAWS",
    "TOGETHER_CODEC",
    "TOGETHER_REVISION",
    "ArrayLayout",
    "shard_layout",
    "token_arrays",
    "token_bytes",
]

CHUNK_TOKENS: Final = 4096
"""Response tokens per chunk. Reading one sample decodes at least one chunk. Chunks of a quarter
cost 3 % more bytes."""

CHUNK_BYTES: Final = 2**28
"""Most bytes of one decoded chunk."""

MAX_CHUNK_DRAWS: Final = 2**22
"""Most draws of a chunk. Decoding takes some hundred bytes of memory for each."""

DRAWS_CODEC: Final = "vlsi-cache.draws"
"""Name of the codec of draws in an array's metadata."""

TOGETHER_CODEC: Final = "vlsi-cache.together"
"""Name of the codec of whole records in an array's metadata."""

TOGETHER_REVISION: Final = 2
"""Revision of that codec. Before any release, records had other bytes under the same name and
without this number. Those bytes would now and then decode to wrong records."""

CODE_HOLE: Final = 255
"""Fill value of the arrays that hold whole numbers of steps, 0 … 254."""

LOG_PROB_FLOOR: Final = float(np.finfo(np.float16).min)
"""Least log-probability that is stored, −65,504 nats. Its probability is 0 in float64 too."""


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """One array of a shard."""

    dtype: str
    """NumPy name of the stored type."""
    shape: tuple[int, ...]
    """Shape of the whole array."""
    chunk_rows: int
    """Rows per chunk. The other axes are whole."""
    fill_value: int | float
    """The value that a missing chunk reads as. Zarr fills holes without an error. So the value is
    impossible in a sound record, and every read looks for it."""
    draws: bool = False
    """Whether the rows are draws, which have a codec of their own."""
    together: int | None = None
    """k, if the rows are records of ``TOGETHER_CODEC``."""

    @property
    def chunks(self) -> tuple[int, ...]:
        """Shape of a chunk."""
        return (self.chunk_rows, *self.shape[1:])

    @property
    def file_shape(self) -> tuple[int, ...]:
        """Shape that one file covers. It is the whole array, rounded up to whole chunks."""
        num_chunks = max(-(-self.shape[0] // self.chunk_rows), 1)
        return (num_chunks * self.chunk_rows, *self.shape[1:])


def shard_layout(
    manifest: CacheManifest, *, num_samples: int, num_tokens: int, id_bytes: int
) -> Mapping[str, ArrayLayout]:
    """Return the arrays of a shard by name.

    Args:
        manifest: Manifest of the cache.
        num_samples: Samples of this shard, n.
        num_tokens: Their response tokens, N.
        id_bytes: Length of ``sample_ids``.
    """
    return {
        **_token_layout(manifest, num_tokens),
        "sample_offsets": ArrayLayout(
            "int64", (num_samples + 1,), min(num_samples + 1, CHUNK_BYTES // 8), -1
        ),
        "sample_keys": ArrayLayout(
            "uint8", (num_samples, 32), min(num_samples, CHUNK_BYTES // 32), 0
        ),
        "sample_ids": ArrayLayout("uint8", (id_bytes,), min(id_bytes, CHUNK_BYTES), 0),
    }


def token_arrays(manifest: CacheManifest) -> tuple[str, ...]:
    """Return the names of the arrays with a row per response token."""
    return tuple(_token_layout(manifest, 0))


def token_bytes(manifest: CacheManifest) -> int:
    """Return the uncompressed bytes of one response token at all taps."""
    return sum(_num_bytes(array) for array in _token_layout(manifest, 1).values())


def _token_layout(manifest: CacheManifest, num_tokens: int) -> dict[str, ArrayLayout]:
    taps, k, m = len(manifest.taps), manifest.sampling.k, manifest.sampling.m
    rows = max(min(num_tokens, CHUNK_TOKENS), 1)
    response_ids = ArrayLayout("int32", (num_tokens,), rows, -1)
    if manifest.sampling.drawn_from == "whole":
        width = 2 * k + m + 2
        fewer = min(rows, MAX_CHUNK_DRAWS // (taps * width))
        shape = (num_tokens, taps, width)
        together = ArrayLayout("int32", shape, fewer, -1, together=k)
        return {"together": together, **_hidden_layout(manifest, num_tokens, rows)} | {
            "response_ids": response_ids
        }
    arrays = {}
    if k:
        shape, fewer = (num_tokens, taps, k), min(rows, CHUNK_BYTES // (4 * taps * k))
        arrays["top_ids"] = ArrayLayout("int32", shape, fewer, -1)
        arrays["top_log_probs"] = ArrayLayout("float16", shape, fewer, float("nan"))
    if m:
        fewer = min(rows, MAX_CHUNK_DRAWS // (taps * m))
        arrays["drawn_ids"] = ArrayLayout("int32", (num_tokens, taps, m), fewer, -1, draws=True)
    return arrays | {
        "entropy": ArrayLayout("uint8", (num_tokens, taps), rows, CODE_HOLE),
        "label_log_prob": ArrayLayout("uint8", (num_tokens, taps), rows, CODE_HOLE),
        **_hidden_layout(manifest, num_tokens, rows),
        "response_ids": response_ids,
    }


def _hidden_layout(manifest: CacheManifest, num_tokens: int, rows: int) -> dict[str, ArrayLayout]:
    if manifest.hidden is None:
        return {}
    return {"hidden_signs": ArrayLayout("uint8", (num_tokens, manifest.hidden.bits // 8), rows, 0)}


def _num_bytes(array: ArrayLayout) -> int:
    size: Any = np.dtype(array.dtype).itemsize
    return int(np.prod(array.shape)) * int(size)
