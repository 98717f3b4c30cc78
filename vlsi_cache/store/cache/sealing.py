"""Sealing published files: shards, the processor, and the index of all."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from vlsi_cache.errors import CacheError, CacheMismatchError
from vlsi_cache.store.cache.documents import render_document
from vlsi_cache.store.cache.folder import (
    PROCESSOR_FILE_BYTES,
    CacheFolder,
    read_processor_seal,
    read_seal,
)
from vlsi_cache.store.cache.hashing import hash_file
from vlsi_cache.store.cache.processors import (
    SavedProcessor,
    find_processor_problems,
    kept_processor,
    saved_processor,
)
from vlsi_cache.store.cache.seals import CacheIndex, FileSeal, ProcessorSeal, ShardSeal, sha256_hex
from vlsi_cache.store.places.keys import (
    CACHE_FOLDERS,
    INDEX_FILE,
    PROCESSOR_FOLDER,
    PROCESSOR_SEAL_FILE,
    SHARDS_FOLDER,
    seal_key,
    shard_key,
)
from vlsi_cache.store.places.place import Place
from vlsi_cache.store.shards.shard import OpenShard, read_sized_header

__all__ = [
    "fetch_processor",
    "publish_index",
    "seal_processor",
    "seal_shard",
    "seal_unsealed",
    "validate_processor",
]

_THREADS: Final = 8
"""Seals are small, so reading them from another machine is mostly waiting."""


def seal_shard(
    folder: CacheFolder,
    shard_index: int,
    index: CacheIndex | None,
    published: bytes | None = None,
) -> None:
    """Publish the seal of a published shard.

    The seal is made of the published file. A shard of another process is decoded first, so that no
    damage is sealed.

    Args:
        folder: Folder of the cache.
        shard_index: Index of the shard.
        index: Index of the cache, if it was complete before.
        published: Bytes of the shard, if this process published them.

    Raises:
        CacheError: the shard is damaged, or its seal or the index contradicts it.
    """
    seal = _make_seal(folder, shard_index, published)
    won = folder.place.publish(seal_key(shard_index), render_document(seal))
    if not won and read_seal(folder.place, shard_index) != seal:
        raise CacheError(
            "seal contradicts the shard beside it",
            where=folder.place.locate(seal_key(shard_index)),
            mend=f"Delete this file, {shard_key(shard_index)} and {INDEX_FILE}, and run "
            "dump-teacher again with the same settings",
        )
    if index is not None and index.shards[shard_index] != seal:
        raise CacheError(
            f"shard is not the one that {INDEX_FILE} lists",
            where=folder.place.locate(shard_key(shard_index)),
            mend=f"Delete {INDEX_FILE}, then run {folder.command}; it is made again",
        )


def _make_seal(folder: CacheFolder, shard_index: int, published: bytes | None) -> ShardSeal:
    if published is None:
        OpenShard(folder.address(shard_index)).read_record()
        digest, num_bytes = hash_file(folder.place, shard_key(shard_index))
    else:
        digest, num_bytes = sha256_hex(published), len(published)
    header, _ = read_sized_header(folder.address(shard_index))
    return ShardSeal(
        sha256=digest,
        num_bytes=num_bytes,
        num_samples=header.num_samples,
        num_tokens=header.num_tokens,
        num_failed=len(header.failures),
    )


def seal_unsealed(folder: CacheFolder, listed: CacheIndex | None) -> None:
    """Publish the seals that killed writers did not publish.

    Args:
        folder: Folder of the cache.
        listed: Index of the cache, if it was complete before.

    Raises:
        CacheError: a shard is damaged, or differs from the index.
    """
    present = folder.place.list_files(SHARDS_FOLDER)
    for index in range(folder.manifest.num_shards):
        if shard_key(index) in present and seal_key(index) not in present:
            seal_shard(folder, index, listed)


def publish_index(folder: CacheFolder) -> set[int]:
    """Publish the index if every shard is sealed and there is none.

    Every writer calls this after sealing a shard, so the last one finds all shards sealed.

    Returns:
        Indices of the shards that are not sealed yet.
    """
    place, num_shards = folder.place, folder.manifest.num_shards
    if place.size(INDEX_FILE) is not None:
        return set()
    present = place.list_files(SHARDS_FOLDER)
    unsealed = {
        index
        for index in range(num_shards)
        if shard_key(index) not in present or seal_key(index) not in present
    }
    if unsealed:
        return unsealed
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda index: read_seal(place, index), range(num_shards)))
    seals = [seal for seal in found if seal is not None]
    if len(seals) < num_shards:  # a seal was deleted meanwhile
        return {index for index, seal in enumerate(found) if seal is None}
    index = CacheIndex(
        format_version=folder.manifest.format_version,
        manifest_sha256=folder.digest,
        processor=read_processor_seal(place),
        shards=tuple(seals),
    )
    place.publish(INDEX_FILE, render_document(index))
    place.clear_leftovers(CACHE_FOLDERS)
    return set()


def seal_processor(place: Place, source: Path, *, same_library: bool) -> None:
    """Publish a processor's files, then their seal. Files that are sealed already stay.

    Nothing is added if there is an index, because it lists all seals.

    Args:
        place: place of the cache.
        source: folder that ``save_pretrained`` filled.
        same_library: whether the cache was begun with the version of transformers that saved it.

    Raises:
        CacheMismatchError: the sealed processor decides otherwise.
        CacheError: a file cannot be written, or other files lie there unsealed.
    """
    own = saved_processor(source)
    if read_processor_seal(place) is None and place.size(INDEX_FILE) is None:
        contents = own.contents or {}
        _validate_bounds(contents, source)
        for name, content in contents.items():
            place.publish(f"{PROCESSOR_FOLDER}/{name}", content)
        _validate_kept(place, own.files)
        place.publish(PROCESSOR_SEAL_FILE, render_document(ProcessorSeal(files=dict(own.files))))
    # read back even if just sealed, because another writer may have been first
    validate_processor(place, own, same_library=same_library)


def validate_processor(place: Place, own: SavedProcessor, *, same_library: bool) -> None:
    """Refuse a processor that decides otherwise than the sealed one. There may be none.

    Raises:
        CacheMismatchError: it makes other tokens or pixels.
    """
    kept = kept_processor(place, read_processor_seal(place))
    found = find_processor_problems(kept, own, same_library=same_library) if kept else []
    if found:
        raise CacheMismatchError(
            "cache was begun with a processor that decides otherwise",
            problems=found,
            where=place.locate(PROCESSOR_FOLDER),
            mend="Choose another cache folder, or go back to the teacher's files of then",
        )


def _validate_bounds(contents: Mapping[str, bytes], source: Path) -> None:
    for name, content in contents.items():
        if len(content) > PROCESSOR_FILE_BYTES:
            raise CacheError(
                "processor's file is beyond the bounds of readers",
                where=source / name,
                expected=f"at most {PROCESSOR_FILE_BYTES:,} bytes",
                found=f"{len(content):,}",
            )


def _validate_kept(place: Place, files: Mapping[str, FileSeal]) -> None:
    """Refuse to seal a mixture. Another writer may have published other files first."""
    wanted = {f"{PROCESSOR_FOLDER}/{name}": seal.sha256 for name, seal in files.items()}
    others = [
        key
        for key in place.list_files(PROCESSOR_FOLDER)
        if key not in wanted or hash_file(place, key)[0] != wanted[key]
    ]
    if others and read_processor_seal(place) is None:
        raise CacheError(
            "processor's files lie there unsealed, and are not this teacher's",
            where=place.locate(),
            found=", ".join(others[:5]),
            mend=f"If another writer is at work, run again; else delete {PROCESSOR_FOLDER}/ first",
        )


def fetch_processor(folder: CacheFolder, target: Path) -> None:
    """Copy a processor's files into a folder of this machine.

    Raises:
        CacheError: no processor is kept, or a file differs from its seal.
    """
    place = folder.place
    seal = read_processor_seal(place)
    if seal is None:
        begin = "Run" if place.size(INDEX_FILE) is None else f"Delete {INDEX_FILE} and run"
        condition = " if the first of them keeps one" if folder.manifest.parts else ""
        raise CacheError(
            "cache keeps no processor",
            where=place.locate(PROCESSOR_SEAL_FILE),
            mend=f"{begin} {folder.command}; it is added{condition}",
        )
    for name, wanted in seal.files.items():
        key = f"{PROCESSOR_FOLDER}/{name}"
        # a seal may state any size, so the file's own size is compared before anything is allocated
        bounded = wanted.num_bytes <= PROCESSOR_FILE_BYTES
        fits = bounded and place.size(key) in (None, wanted.num_bytes)
        content = place.read(key, limit=wanted.num_bytes) if fits else b""
        if not fits or sha256_hex(content) != wanted.sha256:
            raise CacheError(
                "file differs from its seal",
                where=place.locate(key),
                mend="Run vlsi-cache verify: it names the damaged file",
            )
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
