"""Whether the files of a cache say the same: what is read is what was sealed and listed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NoReturn

from vlsi_cache.errors import CacheError
from vlsi_cache.store.cache.documents import render_document
from vlsi_cache.store.cache.folder import (
    SEAL_BYTES,
    CacheFolder,
    list_cache,
    open_folder,
    read_index,
    read_seal,
)
from vlsi_cache.store.cache.seals import CacheIndex, ShardSeal
from vlsi_cache.store.cache.verification.damage import Damage, describe_damage
from vlsi_cache.store.cache.verification.examine import examine_shard, judge_shard
from vlsi_cache.store.cache.verification.origins import validate_origins
from vlsi_cache.store.cache.verification.processor import judge_processor
from vlsi_cache.store.places.keys import (
    INDEX_FILE,
    PROCESSOR_FOLDER,
    PROCESSOR_SEAL_FILE,
    SHARDS_FOLDER,
    part_key,
    seal_key,
    shard_key,
)
from vlsi_cache.store.places.opening import open_place
from vlsi_cache.store.shards.header import ShardHeader
from vlsi_cache.store.shards.shard import OpenShard, read_sized_header

__all__ = [
    "open_shard",
    "read_complete",
    "read_shard_header",
    "validate_listed",
    "validate_sealed",
    "validate_seals",
    "validate_sizes",
]

_THREADS: Final = 8
"""Seals are small, so reading them from another machine is mostly waiting."""


def open_shard(folder: CacheFolder, index: CacheIndex | None, shard_index: int) -> OpenShard:
    """Open a published shard whose seal and index say what its header says.

    Args:
        folder: the cache.
        index: its index, if it has one. Without an index a shard may lack its seal.
        shard_index: the shard.

    Raises:
        CacheError: the shard is missing or damaged, or the three contradict one another.
    """
    shard = OpenShard(folder.address(shard_index))
    _validate_shard(folder, index, shard_index, shard.header, shard.num_bytes)
    return shard


def read_shard_header(
    folder: CacheFolder, index: CacheIndex | None, shard_index: int
) -> ShardHeader:
    """Read the header of a published shard, as ``open_shard`` does.

    Raises:
        CacheError: as in ``open_shard``.
    """
    header, num_bytes = read_sized_header(folder.address(shard_index))
    _validate_shard(folder, index, shard_index, header, num_bytes)
    return header


def read_complete(folder: CacheFolder) -> CacheIndex | None:
    """Read the index of a complete cache with all its files, or return None if there is none.

    Raises:
        CacheError: the index is damaged, a file that it names is missing, or the seal of the
            processor's files differs from it. Or there is none, and a merged manifest contradicts
            its parts.
    """
    index = read_index(folder)
    if index is not None:
        # not before: what is listed may become complete meanwhile
        files = list_cache(folder.place)
        if PROCESSOR_SEAL_FILE in files:  # a damaged index may list files that never were
            _validate_processor_seal(folder, index, files)
        validate_listed(folder, index, files)
    else:
        validate_origins(folder)
    return index


def validate_listed(folder: CacheFolder, index: CacheIndex, files: Mapping[str, int]) -> None:
    """Refuse a complete cache that lost a file.

    Args:
        folder: the cache.
        index: its index.
        files: every file that is there.

    Raises:
        CacheError: a file that the index names is missing.
    """
    lost = list(_find_lost(folder, index, files))
    if not lost:
        return
    more = f", and {len(lost) - 1:,} more" if len(lost) > 1 else ""
    raise CacheError(
        f"file is missing{more}, although {INDEX_FILE} lists it",
        where=folder.place.locate(lost[0].files[0]),
        mend=lost[0].mend,
    )


def validate_sealed(folder: CacheFolder, files: Mapping[str, int]) -> None:
    """Refuse an unfinished cache that lost a shard: its seal was published after it.

    Raises:
        CacheError: a shard is missing, and its seal is there.
    """
    for index in range(folder.manifest.num_shards):
        key = shard_key(index)
        # a listing that meets a writer at work may miss the shard and show its seal
        if seal_key(index) in files and key not in files and folder.place.size(key) is None:
            raise CacheError(
                "shard is missing, although its seal is there",
                where=folder.place.locate(key),
                mend="Put the file back, or run dump-teacher again. It writes only what is missing",
            )


def validate_sizes(address: str | Path) -> None:
    """Refuse a complete cache with a shard of another size, before hours pass until it is read.

    One listing shows all sizes. Bytes are compared wherever a shard is read, and by verifying.

    Raises:
        CacheError: a shard has another size than the index says.
    """
    folder = open_folder(open_place(address))
    index = read_complete(folder)
    if index is None:
        return
    files = folder.place.list_files(SHARDS_FOLDER)
    for shard_index, seal in enumerate(index.shards):
        if files.get(shard_key(shard_index)) != seal.num_bytes:
            open_shard(folder, index, shard_index)


def validate_seals(folder: CacheFolder, index: CacheIndex) -> None:
    """Refuse an index that differs from the seals. Their numbers are then known twice.

    Raises:
        CacheError: a seal is missing, or differs from the index.
    """

    def validate(shard_index: int) -> None:
        content = folder.place.read(seal_key(shard_index), limit=SEAL_BYTES)
        if content != render_document(index.shards[shard_index]):
            _raise_blamed(folder, index, shard_index)

    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(validate, range(len(index.shards))):
            pass


def _validate_processor_seal(
    folder: CacheFolder, index: CacheIndex, files: Mapping[str, int]
) -> None:
    """Refuse an index that differs from the seal of the processor's files."""
    wanted = b"" if index.processor is None else render_document(index.processor)
    if folder.place.read_range(PROCESSOR_SEAL_FILE, 0, len(wanted) + 1) != wanted:
        for damage in judge_processor(folder, index, files):
            _raise(folder, damage)


def _find_lost(
    folder: CacheFolder, index: CacheIndex, files: Mapping[str, int]
) -> Iterator[Damage]:
    for shard_index in range(len(index.shards)):
        if shard_key(shard_index) not in files:
            key = shard_key(shard_index)
            yield describe_damage((key,), "is missing", "shard", folder, shard_index)
        if seal_key(shard_index) not in files:
            key = seal_key(shard_index)
            yield describe_damage((key,), "is missing", "seal", folder, shard_index)
    if index.processor is not None:
        names = (f"{PROCESSOR_FOLDER}/{name}" for name in index.processor.files)
        for key in (PROCESSOR_SEAL_FILE, *names):
            if key not in files:
                yield describe_damage((key,), "is missing", "processor", folder)
    for part_index in range(len(folder.manifest.parts)):
        if part_key(part_index) not in files:
            yield describe_damage((part_key(part_index),), "is missing", "part", folder)


def _validate_shard(
    folder: CacheFolder,
    index: CacheIndex | None,
    shard_index: int,
    header: ShardHeader,
    num_bytes: int,
) -> None:
    seal = read_seal(folder.place, shard_index)
    listed = None if index is None else index.shards[shard_index]
    if seal is None and listed is None:
        return  # its writer seals it in a moment, or was killed before
    own = (num_bytes, header.num_samples, header.num_tokens, len(header.failures))
    if seal is None or (listed is not None and seal != listed) or own != _sizes(seal):
        _raise_blamed(folder, index, shard_index)


def _sizes(seal: ShardSeal) -> tuple[int, int, int, int]:
    return seal.num_bytes, seal.num_samples, seal.num_tokens, seal.num_failed


def _raise_blamed(folder: CacheFolder, index: CacheIndex | None, shard_index: int) -> NoReturn:
    """Raise the damage of a shard whose file, seal and index disagree."""
    listed = None if index is None else index.shards[shard_index]
    finding = examine_shard(folder.place, shard_index, folder.place.list_files(), listed)
    for damage in judge_shard(folder, shard_index, finding, listed):
        _raise(folder, damage)
    raise CacheError(
        "file changed while it was read",
        where=folder.place.locate(shard_key(shard_index)),
        mend="Nothing published may change. Run vlsi-cache verify",
    )


def _raise(folder: CacheFolder, damage: Damage) -> NoReturn:
    raise CacheError(
        damage.fault,
        where=" or ".join(folder.place.locate(key) for key in damage.files),
        mend=damage.mend,
    )
