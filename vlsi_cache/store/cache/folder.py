"""What a cache folder holds: its manifest, its published shards, its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vlsi_cache.errors import CacheError
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.store.cache.documents import parse_canonical, parse_document, prove_known_version
from vlsi_cache.store.cache.seals import CacheIndex, ProcessorSeal, ShardSeal, sha256_hex
from vlsi_cache.store.places.place import Place, open_place
from vlsi_cache.store.shards.layout import (
    INDEX_FILE,
    MANIFEST_FILE,
    PROCESSOR_SEAL_FILE,
    SHARDS_FOLDER,
    part_key,
    seal_key,
    shard_key,
)

__all__ = [
    "CacheFolder",
    "find_missing_shards",
    "is_begun",
    "measure_bytes",
    "open_folder",
    "parse_index",
    "read_index",
    "read_processor_seal",
    "read_seal",
]

_MANIFEST_BYTES: Final = 2**20
_PROCESSOR_SEAL_BYTES: Final = 2**20
_SEAL_BYTES: Final = 2**12
_ENTRY_BYTES: Final = 2**9
"""Most bytes of a shard's seal in the index."""

_MEND_MANIFEST: Final = "Restore the file from a copy, or dump the teacher again into a new folder"
_MEND_DERIVED: Final = (
    "Delete this file and run dump-teacher again with the same settings; it is made anew"
)


@dataclass(frozen=True, slots=True)
class CacheFolder:
    """A cache that was begun."""

    place: Place
    """Where it lies."""
    manifest: CacheManifest
    """What it is."""
    digest: str
    """SHA-256 of the manifest's file; every shard names it, but those of a merged cache."""
    part_digests: tuple[str, ...] = ()
    """Of a merged cache: SHA-256 of each part's manifest, which its shards name."""

    def origin(self, shard_index: int) -> tuple[str, int]:
        """Digest and number that a shard must name: of the cache that it was written for."""
        origin = self.manifest.shard_origin(shard_index)
        if origin.part_index is None:
            return self.digest, shard_index
        return self.part_digests[origin.part_index], origin.shard_index

    @property
    def command(self) -> str:
        """What makes up for a missing file, after `run`."""
        if self.manifest.parts:
            return "merge again with the same caches"
        return "dump-teacher again with the same settings"


def is_begun(path: str | Path) -> bool:
    """Whether there is a cache, finished or not."""
    return open_place(path).size(MANIFEST_FILE) is not None


def open_folder(place: Place) -> CacheFolder:
    """Read and validate a cache's manifest.

    Raises:
        CacheError: there is no cache, its manifest is missing or damaged, or its format is of a
            version that this library does not know.
    """
    if place.size(MANIFEST_FILE) is None:
        if not place.list_files():
            raise CacheError(
                "no cache here",
                where=place.locate(),
                mend="Check the path, or run dump-teacher to make it",
            )
        inside = place.size(f"cache/{MANIFEST_FILE}") is not None
        raise CacheError(
            f"folder is not a cache, or not a whole one: {MANIFEST_FILE} is missing",
            where=place.locate(),
            mend=f"{place.locate('cache')} is one: give that path"
            if inside
            else "Check the path, or dump the teacher into a new folder",
        )
    content = place.read(MANIFEST_FILE, limit=_MANIFEST_BYTES)
    where = place.locate(MANIFEST_FILE)
    prove_known_version(content, what="manifest", where=where, mend=_MEND_MANIFEST)
    manifest = parse_document(
        content, CacheManifest, what="manifest", where=where, mend=_MEND_MANIFEST
    )
    part_digests = tuple(part.manifest_sha256 for part in manifest.parts)
    return CacheFolder(place, manifest, sha256_hex(content), part_digests)


def read_index(folder: CacheFolder) -> CacheIndex | None:
    """The index of a complete cache, or None while there is none.

    Raises:
        CacheError: it is damaged, or another cache's.
    """
    index = parse_index(folder.place, folder.manifest.num_shards)
    if index is not None and index.manifest_sha256 != folder.digest:
        raise CacheError(
            "index and manifest belong to different caches, or one of the two is damaged",
            where=folder.place.locate(INDEX_FILE),
            expected=f"manifest {folder.digest[:12]}",
            found=f"manifest {index.manifest_sha256[:12]}",
            mend="Run vlsi-cache verify: it tells which of the two is at fault",
        )
    if index is not None and len(index.shards) != folder.manifest.num_shards:
        raise CacheError(
            "index is damaged",
            where=folder.place.locate(INDEX_FILE),
            expected=f"{folder.manifest.num_shards} shards",
            found=len(index.shards),
            mend=_MEND_DERIVED,
        )
    return index


def parse_index(place: Place, num_shards: int) -> CacheIndex | None:
    """The index as it stands, whichever manifest it names, of at most about so many shards.

    Raises:
        CacheError: it is damaged.
    """
    if place.size(INDEX_FILE) is None:
        return None
    content = place.read(INDEX_FILE, limit=2 * _PROCESSOR_SEAL_BYTES + _ENTRY_BYTES * num_shards)
    where = place.locate(INDEX_FILE)
    prove_known_version(content, what="index", where=where, mend=_MEND_DERIVED)
    return parse_canonical(content, CacheIndex, what="index", where=where, mend=_MEND_DERIVED)


def read_seal(place: Place, shard_index: int) -> ShardSeal | None:
    """A shard's seal, or None while there is none.

    Raises:
        CacheError: it is damaged.
    """
    key = seal_key(shard_index)
    if place.size(key) is None:
        return None
    content = place.read(key, limit=_SEAL_BYTES)
    where = place.locate(key)
    return parse_canonical(content, ShardSeal, what="seal", where=where, mend=_MEND_DERIVED)


def read_processor_seal(place: Place) -> ProcessorSeal | None:
    """The seal of the processor's files, or None where none are kept.

    Raises:
        CacheError: it is damaged.
    """
    if place.size(PROCESSOR_SEAL_FILE) is None:
        return None
    content = place.read(PROCESSOR_SEAL_FILE, limit=_PROCESSOR_SEAL_BYTES)
    where = place.locate(PROCESSOR_SEAL_FILE)
    return parse_canonical(content, ProcessorSeal, what="seal", where=where, mend=_MEND_DERIVED)


def find_missing_shards(folder: CacheFolder) -> list[int]:
    """Indices of the shards that are not published yet, ascending."""
    present = folder.place.list_files(SHARDS_FOLDER)
    return [index for index in range(folder.manifest.num_shards) if shard_key(index) not in present]


def measure_bytes(folder: CacheFolder) -> int:
    """Bytes of the manifest, the index and every published shard with its seal.

    The processor's copy is not counted: it does not grow with the data.
    """
    sizes = folder.place.list_files()
    keys = [MANIFEST_FILE, INDEX_FILE]
    keys += [part_key(index) for index in range(len(folder.manifest.parts))]
    for index in range(folder.manifest.num_shards):
        keys += [shard_key(index), seal_key(index)]
    return sum(sizes.get(key, 0) for key in keys)
