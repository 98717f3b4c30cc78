"""Shards taken apart and put together again: tests lay hands on what is published."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from vlsi_cache.store.shards.archive import pack_archive

__all__ = ["chunk_of", "edited_group", "read_entries", "shard_file", "write_entries"]


def shard_file(cache: Path, shard_index: int) -> Path:
    return cache / "shards" / f"{shard_index:05d}.zarr.zip"


def read_entries(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_entries(file: Path, entries: dict[str, bytes]) -> None:
    file.write_bytes(pack_archive(entries))


def chunk_of(entries: dict[str, bytes], array: str) -> str:
    (name,) = (name for name in entries if name.startswith(f"{array}/c"))
    return name


@contextmanager
def edited_group(file: Path) -> Iterator[zarr.Group]:
    """Open the shard's group for writing, then pack the zip again with sound checksums."""
    buffer = default_buffer_prototype().buffer
    store = {name: buffer.from_bytes(data) for name, data in read_entries(file).items()}
    yield zarr.open_group(MemoryStore(store), mode="r+", zarr_format=3)
    write_entries(file, {name: data.to_bytes() for name, data in store.items()})
