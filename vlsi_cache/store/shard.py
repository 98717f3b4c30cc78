"""One shard as a Zarr v3 group, written whole and read in parts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from pydantic import BaseModel, ConfigDict, Field
from zarr.storage import LocalStore

from vlsi_cache.errors import CacheError
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.store.arrays import (
    TOKEN_ARRAYS,
    Array,
    encode_shard,
    find_fault,
    parse_distribution,
    parse_sample_ids,
)
from vlsi_cache.store.codecs import chunk_codecs
from vlsi_cache.store.layout import CHUNK_TOKENS, shard_layout, shard_path
from vlsi_cache.store.records import ShardRecord

__all__ = ["OpenShard", "read_header", "write_shard_group"]

_ATTRIBUTE: Final = "vlsi_cache"


class ShardHeader(BaseModel):
    """What a shard's group says of itself, under the attribute ``vlsi_cache``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    shard_index: int = Field(ge=0)
    num_samples: int = Field(ge=1)
    num_tokens: int = Field(ge=0)


def write_shard_group(
    folder: Path, shard_index: int, record: ShardRecord, manifest: CacheManifest
) -> None:
    """Write a shard's arrays into an empty folder."""
    arrays = encode_shard(record)
    header = ShardHeader(
        shard_index=shard_index, num_samples=len(record), num_tokens=record.num_tokens
    )
    layout = shard_layout(
        manifest,
        num_samples=header.num_samples,
        num_tokens=header.num_tokens,
        id_bytes=len(arrays["sample_ids"]),
    )
    group = zarr.create_group(
        LocalStore(folder), zarr_format=3, attributes={_ATTRIBUTE: header.model_dump()}
    )
    for name, array in layout.items():
        stored = group.create_array(
            name,
            shape=array.shape,
            dtype=array.dtype,
            chunks=array.chunks,
            shards=array.file_shape,  # one file per array, however many chunks
            compressors=chunk_codecs(),
            filters=None,
            fill_value=array.fill_value,
        )
        stored[...] = arrays[name]


def read_header(cache: Path, shard_index: int) -> ShardHeader:
    """What a published shard says of itself: cheap, one small file.

    Raises:
        CacheError: the shard is not there, or its header is damaged.
    """
    path = shard_path(cache, shard_index)
    if not path.is_dir():
        raise CacheError(
            f"shard {shard_index} is not written yet",
            where=cache,
            mend="Run dump-teacher again with the same settings; it goes on where it stopped",
        )
    with _faults_named(path):
        metadata = json.loads((path / "zarr.json").read_bytes())
        header = ShardHeader.model_validate(metadata["attributes"][_ATTRIBUTE])
        if header.shard_index != shard_index:
            raise ValueError(f"it holds shard {header.shard_index}")
        return header


class OpenShard:
    """A published shard: its samples' index in memory, its token arrays on disk.

    Args:
        cache: the cache's folder.
        shard_index: which shard.
        manifest: the cache's manifest.

    Raises:
        CacheError: the shard is not there, or damaged.
    """

    def __init__(self, cache: Path, shard_index: int, manifest: CacheManifest) -> None:
        self.path = shard_path(cache, shard_index)
        self.manifest = manifest
        self.header = read_header(cache, shard_index)
        with _faults_named(self.path):
            expected = len(manifest.shard_range(shard_index))
            if self.header.num_samples != expected:
                raise ValueError(f"{self.header.num_samples} samples instead of {expected}")
            self._arrays = self._open_arrays()
            self.offsets, self.keys = self._whole("sample_offsets"), self._whole("sample_keys")
            self.sample_ids = parse_sample_ids(self._whole("sample_ids"))
            self._prove_index()

    @property
    def num_tokens(self) -> int:
        """Response tokens of the shard, N."""
        return self.header.num_tokens

    def read_tokens(self, first: int, stop: int) -> dict[str, Array]:
        """Stored token arrays from one response token up to another.

        Raises:
            CacheError: a chunk is missing, damaged, or holds an impossible value.
        """
        with _faults_named(self.path):
            arrays = {name: np.asarray(self._arrays[name][first:stop]) for name in TOKEN_ARRAYS}
            fault = find_fault(arrays, self.manifest.tokenizer.vocab_size)
            if fault:
                raise ValueError(fault)
            return arrays

    def read_block(self, block_index: int) -> dict[str, Array]:
        """Stored token arrays of one chunk, ``CHUNK_TOKENS`` tokens or what is left."""
        first = block_index * CHUNK_TOKENS
        return self.read_tokens(first, min(first + CHUNK_TOKENS, self.num_tokens))

    def read_record(self) -> ShardRecord:
        """The whole shard."""
        arrays = self.read_tokens(0, self.num_tokens)
        return ShardRecord(
            sample_ids=self.sample_ids,
            keys=self.keys,
            offsets=self.offsets,
            response_ids=arrays["response_ids"],
            distribution=parse_distribution(arrays),
        )

    def _open_arrays(self) -> dict[str, zarr.Array[Any]]:
        group = zarr.open_group(LocalStore(self.path, read_only=True), mode="r", zarr_format=3)
        arrays: dict[str, zarr.Array[Any]] = {}
        for name in shard_layout(self.manifest, num_samples=1, num_tokens=0, id_bytes=1):
            array = group[name]
            if not isinstance(array, zarr.Array):
                raise ValueError(f"{name} is not an array")
            arrays[name] = array
        layout = shard_layout(
            self.manifest,
            num_samples=self.header.num_samples,
            num_tokens=self.num_tokens,
            id_bytes=arrays["sample_ids"].size,
        )
        for name, wanted in layout.items():
            array = arrays[name]
            if array.shape != wanted.shape or str(array.dtype) != wanted.dtype:
                raise ValueError(
                    f"{name} is {array.dtype} {array.shape}, not {wanted.dtype} {wanted.shape}"
                )
            # without it a hole would read as plausible numbers
            if not np.array_equal(array.fill_value, wanted.fill_value, equal_nan=True):
                raise ValueError(f"{name} has fill value {array.fill_value}")
        return arrays

    def _whole(self, name: str) -> Array:
        return np.asarray(self._arrays[name][...])

    def _prove_index(self) -> None:
        offsets = self.offsets
        if offsets[0] != 0 or offsets[-1] != self.num_tokens or (np.diff(offsets) < 0).any():
            raise ValueError("sample_offsets does not ascend from 0 to the number of tokens")
        if len(self.sample_ids) != self.header.num_samples:
            raise ValueError(f"{len(self.sample_ids)} sample ids")
        if not self.keys.any(axis=1).all():
            raise ValueError("sample_keys has a hole")


@contextlib.contextmanager
def _faults_named(path: Path) -> Iterator[None]:
    """Any failure to read a published shard is damage, and says how to mend it."""
    try:
        yield
    except CacheError:
        raise
    # damaged bytes surface as whatever error Zarr, a codec or a parser happens to raise
    except Exception as error:
        raise CacheError(
            f"shard is damaged ({type(error).__name__}: {error})",
            where=path,
            mend="Delete this folder and run dump-teacher again with the same settings; it writes "
            "only what is missing",
        ) from error
