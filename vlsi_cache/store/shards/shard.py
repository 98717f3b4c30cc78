"""One shard as a Zarr v3 group in a zip, packed whole and read in parts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

import numpy as np
import zarr
from pydantic import BaseModel, ConfigDict, Field
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from vlsi_cache.errors import CacheError
from vlsi_cache.store.cache.folder import CacheFolder
from vlsi_cache.store.shards.archive import METADATA, Archive, pack_archive
from vlsi_cache.store.shards.archivestore import ArchiveStore
from vlsi_cache.store.shards.arrays import (
    Array,
    encode_shard,
    find_fault,
    parse_distribution,
    parse_sample_ids,
)
from vlsi_cache.store.shards.bounds import prove_array, prove_metadata, prove_volume
from vlsi_cache.store.shards.codecs import bounded_array, chunk_codecs
from vlsi_cache.store.shards.layout import (
    CHUNK_TOKENS,
    ArrayLayout,
    seal_key,
    shard_key,
    shard_layout,
    token_arrays,
)
from vlsi_cache.store.shards.records import ShardRecord

__all__ = [
    "OpenShard",
    "ShardHeader",
    "pack_shard",
    "parse_header",
    "prove_in_place",
    "read_header",
]

_ATTRIBUTE: Final = "vlsi_cache"
FAILURE_CHARACTERS: Final = 300
"""Most of a failure's reason that is kept."""


class Failure(BaseModel):
    """A sample that could not be read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    row: int = Field(ge=0)
    reason: str = Field(min_length=1, max_length=FAILURE_CHARACTERS)


class ShardHeader(BaseModel):
    """What a shard's group says of itself, under the attribute ``vlsi_cache``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    cache: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    shard_index: int = Field(ge=0)
    num_samples: int = Field(ge=1)
    num_tokens: int = Field(ge=0)
    failures: tuple[Failure, ...] = Field(strict=False)


def pack_shard(folder: CacheFolder, shard_index: int, record: ShardRecord) -> bytes:
    """A shard's file, as it is to be published.

    Raises:
        CacheError: readers would refuse it as beyond their bounds.
    """
    arrays = encode_shard(record)
    digest, own_index = folder.origin(shard_index)
    header = ShardHeader(
        cache=digest,
        shard_index=own_index,
        num_samples=len(record),
        num_tokens=record.num_tokens,
        failures=tuple(
            Failure(row=row, reason=reason[:FAILURE_CHARACTERS])
            for row, reason in record.failures.items()
        ),
    )
    layout = shard_layout(
        folder.manifest,
        num_samples=header.num_samples,
        num_tokens=header.num_tokens,
        id_bytes=len(arrays["sample_ids"]),
    )
    files: dict[str, Buffer] = {}
    group = zarr.create_group(
        MemoryStore(files), zarr_format=3, attributes={_ATTRIBUTE: header.model_dump(mode="json")}
    )
    for name, array in layout.items():
        stored = group.create_array(
            name,
            shape=array.shape,
            dtype=array.dtype,
            chunks=array.chunks,
            shards=array.file_shape,  # one file per array, however many chunks
            **chunk_codecs(array),
            filters=None,
            fill_value=array.fill_value,
        )
        stored[...] = arrays[name]
    entries = {
        name: _compact(buffer.to_bytes()) if name.endswith(METADATA) else buffer.to_bytes()
        for name, buffer in files.items()
    }
    content = pack_archive(entries)
    try:
        _prove_bounds(entries, layout, len(content))
    except ValueError as error:
        raise CacheError(
            f"shard would be beyond what readers take ({error})",
            where=folder.place.locate(shard_key(shard_index)),
            mend="Begin another cache, with fewer samples per shard",
        ) from error
    return content


def _prove_bounds(
    entries: Mapping[str, bytes], layout: Mapping[str, ArrayLayout], num_bytes: int
) -> None:
    prove_volume(layout, num_bytes)
    for name, array in layout.items():
        prove_array(name, json.loads(entries[f"{name}/{METADATA}"]), array, num_bytes)
    for name, entry in entries.items():
        if name.endswith(METADATA):
            prove_metadata(name, len(entry))


def _compact(metadata: bytes) -> bytes:
    """JSON without blanks: half the bytes, which count in small shards."""
    return json.dumps(json.loads(metadata), separators=(",", ":")).encode("ascii")


def read_header(folder: CacheFolder, shard_index: int) -> ShardHeader:
    """What a published shard says of itself: cheap, one read of the end of its file.

    Raises:
        CacheError: the shard is not there, its header is damaged, or it is out of its place.
    """
    archive = _open_archive(folder, shard_index)
    with _faults_named(folder, shard_index):
        header = parse_header(archive)
        prove_in_place(header, folder, shard_index)
        return header


def parse_header(archive: Archive) -> ShardHeader:
    """The header of any shard.

    Raises:
        ValueError, KeyError, TypeError: it is damaged.
    """
    metadata = json.loads(ArchiveStore(archive).read_metadata())
    return ShardHeader.model_validate(metadata["attributes"][_ATTRIBUTE])


def prove_in_place(header: ShardHeader, folder: CacheFolder, shard_index: int) -> None:
    """Refuse a shard of another cache, or in another shard's place.

    Raises:
        ValueError: it is one.
    """
    digest, own_index = folder.origin(shard_index)
    if header.cache != digest:
        raise ValueError("it belongs to another cache, or the manifest was changed")
    if header.shard_index != own_index:
        raise ValueError(f"it holds shard {header.shard_index}")
    expected = len(folder.manifest.shard_range(shard_index))
    if header.num_samples != expected:
        raise ValueError(f"{header.num_samples} samples instead of {expected}")


class OpenShard:
    """A published shard: its samples' index in memory, its token arrays on disk.

    Args:
        folder: the cache.
        shard_index: which shard.

    Raises:
        CacheError: the shard is not there, damaged, or out of its place.
    """

    def __init__(self, folder: CacheFolder, shard_index: int) -> None:
        self.folder, self.shard_index = folder, shard_index
        self.manifest = folder.manifest
        self._token_arrays = token_arrays(self.manifest)
        archive = _open_archive(folder, shard_index)
        with _faults_named(folder, shard_index):
            self.header = parse_header(archive)
            prove_in_place(self.header, folder, shard_index)
            self._arrays = self._open_arrays(archive)
            self.offsets, self.keys = self._whole("sample_offsets"), self._whole("sample_keys")
            self.sample_ids = parse_sample_ids(self._whole("sample_ids"))
            self._prove_index()

    @property
    def num_tokens(self) -> int:
        """Response tokens of the shard, N."""
        return self.header.num_tokens

    @property
    def failures(self) -> dict[int, str]:
        """Row of a sample that could not be read → why."""
        return {failure.row: failure.reason for failure in self.header.failures}

    def read_tokens(self, first: int, stop: int) -> dict[str, Array]:
        """Stored token arrays from one response token up to another.

        Raises:
            CacheError: a chunk is missing, damaged, or holds an impossible value.
        """
        with _faults_named(self.folder, self.shard_index):
            arrays = {
                name: np.asarray(self._arrays[name][first:stop]) for name in self._token_arrays
            }
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
            failures=self.failures,
        )

    def _open_arrays(self, archive: Archive) -> dict[str, zarr.Array[Any]]:
        group = zarr.open_group(ArchiveStore(archive), mode="r", zarr_format=3)
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
        prove_volume(layout, archive.num_bytes)
        for name, wanted in layout.items():
            array = arrays[name]
            if array.shape != wanted.shape or str(array.dtype) != wanted.dtype:
                raise ValueError(
                    f"{name} is {array.dtype} {array.shape}, not {wanted.dtype} {wanted.shape}"
                )
            # without it a hole would read as plausible numbers
            if not np.array_equal(array.fill_value, wanted.fill_value, equal_nan=True):
                raise ValueError(f"{name} has fill value {array.fill_value}")
            prove_array(name, array.metadata.to_dict(), wanted, archive.num_bytes)
            arrays[name] = bounded_array(array)
        return arrays

    def _whole(self, name: str) -> Array:
        return np.asarray(self._arrays[name][...])

    def _prove_index(self) -> None:
        offsets = self.offsets
        if offsets[0] != 0 or offsets[-1] != self.num_tokens or (np.diff(offsets) < 0).any():
            raise ValueError("sample_offsets does not ascend from 0 to the number of tokens")
        rows = [failure.row for failure in self.header.failures]
        if rows != sorted(set(rows)) or any(row >= self.header.num_samples for row in rows):
            raise ValueError("failures do not ascend inside the shard")
        if any(offsets[row] != offsets[row + 1] for row in rows):
            raise ValueError("a sample that failed has tokens")
        if len(self.sample_ids) != self.header.num_samples:
            raise ValueError(f"{len(self.sample_ids)} sample ids")
        if not self.keys.any(axis=1).all():
            raise ValueError("sample_keys has a hole")


def _open_archive(folder: CacheFolder, shard_index: int) -> Archive:
    key = shard_key(shard_index)
    if folder.place.size(key) is None:
        raise CacheError(
            f"shard {shard_index} is not written yet, or lost",
            where=folder.place.locate(key),
            mend=f"Run {folder.command}; it writes only what is missing",
        )
    with _faults_named(folder, shard_index):
        return Archive(folder.place, key)


@contextlib.contextmanager
def _faults_named(folder: CacheFolder, shard_index: int) -> Iterator[None]:
    """Any failure to read a published shard is damage, and says how to mend it."""
    try:
        yield
    except CacheError:
        raise
    # damaged bytes surface as whatever error Zarr, a codec or a parser happens to raise
    except Exception as error:
        raise CacheError(
            f"shard is damaged ({type(error).__name__}: {error})",
            where=folder.place.locate(shard_key(shard_index)),
            mend=f"Delete this file and {seal_key(shard_index)}, then run {folder.command}; "
            "it writes only what is missing",
        ) from error
