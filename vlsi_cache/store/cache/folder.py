"""``CacheFolder``: the documents and files of a cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vlsi_cache.errors import CacheError
from vlsi_cache.jsonmodels import parse_json
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.store.cache.documents import parse_canonical, parse_document, validate_known_version
from vlsi_cache.store.cache.seals import CacheIndex, ProcessorSeal, ShardSeal, sha256_hex
from vlsi_cache.store.places.keys import (
    CACHE_FOLDERS,
    INDEX_FILE,
    MANIFEST_FILE,
    PROCESSOR_FOLDER,
    PROCESSOR_SEAL_FILE,
    SHARDS_FOLDER,
    part_key,
    seal_key,
    shard_key,
)
from vlsi_cache.store.places.opening import open_place
from vlsi_cache.store.places.place import Place
from vlsi_cache.store.shards.address import ShardAddress

__all__ = [
    "MANIFEST_BYTES",
    "PROCESSOR_FILE_BYTES",
    "SEAL_BYTES",
    "CacheFolder",
    "count_shards",
    "find_missing_shards",
    "is_begun",
    "list_cache",
    "measure_bytes",
    "open_folder",
    "parse_index",
    "read_index",
    "read_processor_seal",
    "read_seal",
    "validate_index_version",
]

PROCESSOR_FILE_BYTES: Final = 2**28
"""Most bytes of one of the processor's files."""
MANIFEST_BYTES: Final = 2**20
"""Most bytes of a manifest."""
_PROCESSOR_SEAL_BYTES: Final = 2**20
SEAL_BYTES: Final = 2**12
"""Most bytes of a shard's seal."""
_ENTRY_BYTES: Final = 2**9
"""Most bytes of a shard's seal in the index."""

_MEND_MANIFEST: Final = "Restore the file from a copy, or dump the teacher again into a new folder"
_MEND_DERIVED: Final = (
    "Delete this file and run dump-teacher again with the same settings; it is made again"
)


@dataclass(frozen=True, slots=True)
class CacheFolder:
    """A cache that was begun."""

    place: Place
    """Place of the cache."""
    manifest: CacheManifest
    """Manifest of the cache."""
    digest: str
    """SHA-256 of the manifest's file. Every shard names it, except in a merged cache."""
    part_digests: tuple[str, ...] = ()
    """SHA-256 of each part's manifest, which its shards name. Only merged caches have parts."""

    def address(self, shard_index: int) -> ShardAddress:
        """Return a shard's address, with the cache and number that it was written for."""
        origin = self.manifest.shard_origin(shard_index)
        part_index = origin.part_index
        return ShardAddress(
            place=self.place,
            manifest=self.manifest,
            shard_index=shard_index,
            digest=self.digest if part_index is None else self.part_digests[part_index],
            own_index=origin.shard_index,
            command=self.command,
        )

    @property
    def command(self) -> str:
        """The command that writes missing files, after "Run"."""
        if self.manifest.parts:
            return "merge again with the same caches"
        return "dump-teacher again with the same settings"


def is_begun(path: str | Path) -> bool:
    """Report whether there is a cache, finished or not."""
    return open_place(path).size(MANIFEST_FILE) is not None


def open_folder(place: Place) -> CacheFolder:
    """Read and validate a cache's manifest.

    Raises:
        CacheError: there is no cache, its manifest is missing or damaged, or its version is
            unknown.
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
            found=place.describe(),
            mend=f"{place.locate('cache')} is one: give that path"
            if inside
            else "Check the path, or dump the teacher into a new folder",
        )
    content = place.read(MANIFEST_FILE, limit=MANIFEST_BYTES)
    where = place.locate(MANIFEST_FILE)
    validate_known_version(
        content, what="manifest", where=where, mend=_MEND_MANIFEST, parse=parse_json
    )
    manifest = parse_document(
        content, CacheManifest, what="manifest", where=where, mend=_MEND_MANIFEST
    )
    part_digests = tuple(part.manifest_sha256 for part in manifest.parts)
    return CacheFolder(place, manifest, sha256_hex(content), part_digests)


def read_index(folder: CacheFolder) -> CacheIndex | None:
    """Read the index of a complete cache, or return None if there is none.

    Raises:
        CacheError: it is damaged, or belongs to another cache.
    """
    index = parse_index(folder.place, folder.manifest.num_shards)
    if index is not None and index.manifest_sha256 != folder.digest:
        raise CacheError(
            "index and manifest belong to different caches, or one of the two is damaged",
            where=folder.place.locate(INDEX_FILE),
            expected=f"manifest {folder.digest[:12]}",
            found=f"manifest {index.manifest_sha256[:12]}",
            mend="Run vlsi-cache verify: it names the one at fault",
        )
    if index is not None:
        validate_index_version(folder, index)
        _validate_counts(folder, index)
    return index


def validate_index_version(folder: CacheFolder, index: CacheIndex) -> None:
    """Refuse an index of this manifest that names another version of the format.

    Raises:
        CacheError: it does.
    """
    expected = folder.manifest.format_version
    if index.manifest_sha256 == folder.digest and index.format_version != expected:
        raise CacheError(
            "index is damaged",
            where=folder.place.locate(INDEX_FILE),
            expected=f"format version {expected}, as in the manifest",
            found=f"format version {index.format_version}",
            mend=_MEND_DERIVED,
        )


def _validate_counts(folder: CacheFolder, index: CacheIndex) -> None:
    """Refuse an index that counts other shards or samples than the manifest."""
    wanted: list[str] = [f"{folder.manifest.num_shards:,} shards"]
    found: list[str] = [f"{len(index.shards):,} shards"]
    if wanted == found:
        for number, seal in enumerate(index.shards):
            count = len(folder.manifest.shard_range(number))
            if seal.num_samples != count or seal.num_failed > count:
                wanted = [f"{count:,} samples in shard {number}"]
                found = [f"{seal.num_samples:,}, of which {seal.num_failed:,} failed"]
                break
    if wanted != found:
        raise CacheError(
            "index is damaged",
            where=folder.place.locate(INDEX_FILE),
            expected=wanted[0],
            found=found[0],
            mend=_MEND_DERIVED,
        )


def parse_index(place: Place, num_shards: int) -> CacheIndex | None:
    """Read the index, even if it names another manifest.

    Args:
        place: Place of the cache.
        num_shards: Most shards that it may hold, roughly.

    Raises:
        CacheError: it is damaged.
    """
    if place.size(INDEX_FILE) is None:
        return None
    content = place.read(INDEX_FILE, limit=2 * _PROCESSOR_SEAL_BYTES + _ENTRY_BYTES * num_shards)
    where = place.locate(INDEX_FILE)
    validate_known_version(content, what="index", where=where, mend=_MEND_DERIVED)
    return parse_canonical(content, CacheIndex, what="index", where=where, mend=_MEND_DERIVED)


def read_seal(place: Place, shard_index: int) -> ShardSeal | None:
    """Read a shard's seal, or return None if there is none.

    Raises:
        CacheError: it is damaged.
    """
    key = seal_key(shard_index)
    if place.size(key) is None:
        return None
    content = place.read(key, limit=SEAL_BYTES)
    where = place.locate(key)
    return parse_canonical(content, ShardSeal, what="seal", where=where, mend=_MEND_DERIVED)


def read_processor_seal(place: Place) -> ProcessorSeal | None:
    """Read the seal of the processor's files, or return None if none are kept.

    Raises:
        CacheError: it is damaged.
    """
    if place.size(PROCESSOR_SEAL_FILE) is None:
        return None
    content = place.read(PROCESSOR_SEAL_FILE, limit=_PROCESSOR_SEAL_BYTES)
    where = place.locate(PROCESSOR_SEAL_FILE)
    return parse_canonical(content, ProcessorSeal, what="seal", where=where, mend=_MEND_DERIVED)


def list_cache(place: Place) -> dict[str, int]:
    """Return key → bytes of every file of a cache.

    Raises:
        CacheError: a folder cannot be listed, or something else stands under its name.
    """
    files = place.list_files()
    for name in CACHE_FOLDERS:
        if name in files:
            place.list_files(name)  # says what stands there
    return files


def find_missing_shards(folder: CacheFolder) -> list[int]:
    """Find the indices of the shards that are not published yet, ascending."""
    present = folder.place.list_files(SHARDS_FOLDER)
    return [index for index in range(folder.manifest.num_shards) if shard_key(index) not in present]


def count_shards(path: str | Path) -> tuple[int, int]:
    """Return how many shards of a cache are published, and how many there will be.

    Raises:
        CacheError: there is no cache, or its folder cannot be listed.
    """
    folder = open_folder(open_place(path))
    total = folder.manifest.num_shards
    return total - len(find_missing_shards(folder)), total


def measure_bytes(folder: CacheFolder, *, processor: bool = False) -> int:
    """Return the bytes of the manifest, the index and every published shard with its seal.

    Args:
        folder: the cache.
        processor: whether the processor's copy is counted, which does not grow with the data.
    """
    sizes = list_cache(folder.place)
    keys = [MANIFEST_FILE, INDEX_FILE]
    keys += [part_key(index) for index in range(len(folder.manifest.parts))]
    for index in range(folder.manifest.num_shards):
        keys += [shard_key(index), seal_key(index)]
    if processor:
        inside = f"{PROCESSOR_FOLDER}/"
        keys += [key for key in sizes if key == PROCESSOR_SEAL_FILE or key.startswith(inside)]
    return sum(sizes.get(key, 0) for key in keys)
