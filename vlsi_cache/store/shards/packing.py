"""Packing a shard: records become the bytes of one file."""

from __future__ import annotations

import json
from collections.abc import Mapping

import zarr
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from vlsi_cache.errors import CacheError
from vlsi_cache.store.shards.address import ShardAddress
from vlsi_cache.store.shards.archive import METADATA, pack_archive
from vlsi_cache.store.shards.arrays import Array, encode_shard
from vlsi_cache.store.shards.bounds import validate_array, validate_metadata, validate_volume
from vlsi_cache.store.shards.coding.codecs import chunk_codecs
from vlsi_cache.store.shards.header import HEADER_ATTRIBUTE, ShardHeader, header_of
from vlsi_cache.store.shards.layout import ArrayLayout, shard_layout
from vlsi_cache.store.shards.records import ShardRecord

__all__ = ["pack_shard"]


def pack_shard(address: ShardAddress, record: ShardRecord) -> bytes:
    """Return a shard's file, ready to be published.

    Raises:
        CacheError: the shard is beyond the bounds that readers keep.
    """
    arrays = encode_shard(record)
    header = header_of(record, address)
    layout = shard_layout(
        address.manifest,
        num_samples=header.num_samples,
        num_tokens=header.num_tokens,
        id_bytes=len(arrays["sample_ids"]),
    )
    entries = _pack_entries(header, layout, arrays)
    content = pack_archive(entries)
    try:
        _validate_bounds(entries, layout, len(content))
    except ValueError as error:
        raise CacheError(
            f"shard is beyond the bounds of readers ({error})",
            where=address.where,
            mend="Begin another cache, with fewer samples per shard",
        ) from error
    return content


def _pack_entries(
    header: ShardHeader, layout: Mapping[str, ArrayLayout], arrays: Mapping[str, Array]
) -> dict[str, bytes]:
    """Return the entries of the zip: the files of a Zarr group."""
    files: dict[str, Buffer] = {}
    group = zarr.create_group(
        MemoryStore(files),
        zarr_format=3,
        attributes={HEADER_ATTRIBUTE: header.model_dump(mode="json")},
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
    return {
        name: _compact(buffer.to_bytes()) if name.endswith(METADATA) else buffer.to_bytes()
        for name, buffer in files.items()
    }


def _validate_bounds(
    entries: Mapping[str, bytes], layout: Mapping[str, ArrayLayout], num_bytes: int
) -> None:
    validate_volume(layout, num_bytes)
    for name, array in layout.items():
        validate_array(name, json.loads(entries[f"{name}/{METADATA}"]), array, num_bytes)
    for name, entry in entries.items():
        if name.endswith(METADATA):
            validate_metadata(name, len(entry))


def _compact(metadata: bytes) -> bytes:
    """Return JSON without blanks. It takes half the bytes, which count in small shards."""
    return json.dumps(json.loads(metadata), separators=(",", ":")).encode("ascii")
