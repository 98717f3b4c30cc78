"""Merging caches over disjoint samples into one, with their shards unchanged."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np

from vlsi_cache.errors import CacheError, CacheMismatchError
from vlsi_cache.manifest import (
    MAX_PARTS,
    MAX_SHARDS,
    CacheManifest,
    CachePart,
    DatasetIdentity,
    TeacherIdentity,
    explain_difference,
    find_kind_differences,
    is_same_library,
)
from vlsi_cache.store.cache.documents import render_document
from vlsi_cache.store.cache.folder import (
    MANIFEST_BYTES,
    CacheFolder,
    open_folder,
    read_processor_seal,
)
from vlsi_cache.store.cache.processors import find_processor_problems, kept_processor
from vlsi_cache.store.cache.reader import open_cache
from vlsi_cache.store.cache.sealing import publish_index
from vlsi_cache.store.cache.seals import CacheIndex, FileSeal, sha256_hex
from vlsi_cache.store.cache.verification.agreement import (
    open_shard,
    read_complete,
    validate_sizes,
)
from vlsi_cache.store.cache.writer import begin_cache
from vlsi_cache.store.places.keys import (
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
from vlsi_cache.store.shards.arrays import Array

__all__ = ["merge_caches"]

_THREADS: Final = 8
"""Opening a shard or adopting a file is mostly waiting for a store or a disk."""
_NAMED_SOURCES: Final = 3


@dataclass(frozen=True, slots=True)
class _Source:
    """A complete cache to be merged."""

    folder: CacheFolder
    index: CacheIndex

    def parts(self) -> list[tuple[CachePart, Place, str]]:
        """Return its parts, or itself as one, with the file of each one's manifest."""
        manifest, place = self.folder.manifest, self.folder.place
        if manifest.parts:
            return [(part, place, part_key(i)) for i, part in enumerate(manifest.parts)]
        whole = CachePart(
            manifest_sha256=self.folder.digest,
            dataset=manifest.dataset,
            samples_per_shard=manifest.samples_per_shard,
            batch_size=manifest.batch_size,
        )
        return [(whole, place, MANIFEST_FILE)]

    def keys(self, advance: Callable[[], None]) -> Array:
        """Read and validate the content keys of its samples in order, ``[n, 32]``.

        Raises:
            CacheError: a shard is damaged, or the samples are not the manifest's.
        """
        found = [np.empty((0, 32), np.uint8)]
        with ThreadPoolExecutor(_THREADS) as pool:
            shards = range(self.folder.manifest.num_shards)
            for keys in pool.map(self._shard_keys, shards):
                found.append(keys)
                advance()
        keys = np.concatenate(found)
        wanted = self.folder.manifest.dataset.fingerprint
        own = sha256_hex(keys.tobytes())
        if own != wanted:
            raise CacheError(
                "cache holds other samples than its manifest names",
                where=self.folder.place.locate(),
                expected=f"fingerprint {wanted[:12]}",
                found=f"fingerprint {own[:12]}",
                mend="Run vlsi-cache verify; or dump the teacher again into a new folder",
            )
        return keys

    def _shard_keys(self, shard_index: int) -> Array:
        return open_shard(self.folder, self.index, shard_index).keys


def merge_caches(
    target: str | Path,
    sources: Sequence[str | Path],
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Merge several caches over disjoint samples into one, in the order given.

    On one file system the shards are linked. Inside one object store the store copies them. Between
    two places their bytes are copied. A second run adds what is missing.

    Args:
        target: Folder or URL of the new cache.
        sources: Folders or URLs of complete caches.
        on_progress: called with the steps that are done and all steps, two for each shard.

    Raises:
        CacheMismatchError: the caches have different teachers or settings, or share samples.
        CacheError: a cache is incomplete or damaged, or the target holds something else.
    """
    opened = [_open_source(source) for source in sources]
    _validate_none_is(target, opened)
    _validate_alike(opened)
    total, done = 2 * sum(source.folder.manifest.num_shards for source in opened), 0

    def advance() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, total)

    keys = [source.keys(advance) for source in opened]
    _validate_disjoint(opened, keys)
    merged = begin_cache(target, _manifest(opened, keys))
    _adopt_parts(merged, opened)
    _adopt_processor(merged.place, opened[0])
    _adopt_shards(merged, opened, advance)
    publish_index(merged)
    # a target that was complete before may have lost other files, or hold others of their names
    validate_sizes(merged.place.locate())


def _open_source(address: str | Path) -> _Source:
    folder = open_folder(open_place(address))
    index = read_complete(folder)
    if index is None:
        raise CacheError(
            f"cache is incomplete: it has no {INDEX_FILE}",
            where=folder.place.locate(),
            mend=f"Run {folder.command}; it goes on where it stopped",
        )
    return _Source(folder, index)


def _validate_none_is(target: str | Path, sources: Sequence[_Source]) -> None:
    where = open_place(target).locate()
    if where in [source.folder.place.locate() for source in sources]:
        raise CacheError(
            "the cache to make is one of those to merge",
            where=where,
            mend="Give the new cache a folder of its own",
        )


def _validate_alike(sources: Sequence[_Source]) -> None:
    if len(sources) < 2:
        raise CacheError("nothing to merge", expected="at least 2 caches", found=len(sources))
    alike: dict[tuple[str | None, bool], _Source] = {}
    for source in sources:
        # those of one version of transformers say more of each other than others do
        config = source.folder.manifest.teacher.config
        library = None if config is None else config.transformers
        kind = (library, source.index.processor is not None)
        for other in (sources[0], alike.setdefault(kind, source)):
            name = "the first cache's" if other is sources[0] else other.folder.place.locate()
            found = _find_problems(source, other, name)
            if found:
                raise CacheMismatchError(
                    "caches cannot be merged",
                    problems=found,
                    where=source.folder.place.locate(),
                    mend="Merge caches of one teacher, dumped with the same settings",
                )


def _find_problems(source: _Source, other: _Source, name: str) -> list[str]:
    """Find what keeps two caches apart: their settings, or else their processors."""
    own, others = source.folder.manifest, other.folder.manifest
    found = [explain_difference(item, name) for item in find_kind_differences(own, others)]
    kept = kept_processor(source.folder.place, source.index.processor)
    kept_there = kept_processor(other.folder.place, other.index.processor)
    if not found and kept and kept_there:
        same_library = is_same_library(own, others)
        found = find_processor_problems(kept, kept_there, same_library=same_library, name=name)
    return found


def _validate_disjoint(sources: Sequence[_Source], keys: Sequence[Array]) -> None:
    """Refuse a sample that two caches hold: the same id and content.

    Content alone may come twice under two ids, as it may in one dump.
    """
    as_bytes = [np.unique(np.ascontiguousarray(part).view("V32").ravel()) for part in keys]
    seen = as_bytes[0]
    for number, (source, part) in enumerate(zip(sources[1:], as_bytes[1:], strict=True), 1):
        both = {key.tobytes().hex() for key in np.intersect1d(seen, part, assume_unique=True)}
        own = _samples(source, both)
        for holder in sources[:number] if both else ():
            shared = sorted(own & _samples(holder, both))
            if shared:
                raise CacheMismatchError(
                    f"caches share {len(shared):,} conversation{'s' * (len(shared) > 1)}",
                    where=source.folder.place.locate(),
                    found="the same content in sample "
                    + " and in sample ".join(
                        f"{shared[0][0]!r} of {one.folder.place.locate()}"
                        for one in (holder, source)
                    ),
                    mend="Merge caches over disjoint samples",
                )
        seen = np.union1d(seen, part)


def _samples(source: _Source, keys: set[str]) -> set[tuple[str, str]]:
    """Return id and content key of the samples with one of these keys."""
    if not keys:
        return set()
    cache = open_cache(source.folder.place.locate())
    return {
        (name, key) for name, key in zip(cache.names(), cache.keys(), strict=True) if key in keys
    }


def _manifest(sources: Sequence[_Source], keys: Sequence[Array]) -> CacheManifest:
    parts = tuple(part for source in sources for part, _, _ in source.parts())
    _validate_within(parts)
    names = [part.dataset.source for part in parts]
    more = len(names) - _NAMED_SOURCES
    source = " + ".join([*names[:_NAMED_SOURCES], *([f"{more} more"] if more > 0 else [])])
    digest = hashlib.sha256()
    for part_keys in keys:
        digest.update(part_keys.tobytes())
    return CacheManifest.model_validate(
        {
            **dict(sources[0].folder.manifest),
            "teacher": _teacher(sources),
            "vlsi_cache_version": version("vlsi-cache"),
            "dataset": DatasetIdentity(
                source=source, fingerprint=digest.hexdigest(), num_samples=sum(map(len, keys))
            ),
            "samples_per_shard": max(part.samples_per_shard for part in parts),
            "batch_size": max(part.batch_size for part in parts),
            "parts": parts,
        }
    )


def _teacher(sources: Sequence[_Source]) -> TeacherIdentity:
    """Return the first cache's teacher, with a config only if it is that of all."""
    teachers = [source.folder.manifest.teacher for source in sources]
    if all(teacher.config == teachers[0].config for teacher in teachers):
        return teachers[0]
    return teachers[0].model_copy(update={"config": None})


def _validate_within(parts: Sequence[CachePart]) -> None:
    """Refuse more parts or shards than one cache may hold."""
    counted = (
        ("parts", len(parts), MAX_PARTS),
        ("shards", sum(part.cut.num_shards for part in parts), MAX_SHARDS),
    )
    for what, count, most in counted:
        if count > most:
            raise CacheError(
                f"merged cache would have too many {what}",
                expected=f"at most {most:,}",
                found=f"{count:,}",
                mend="Merge fewer caches into one",
            )


def _adopt_parts(merged: CacheFolder, sources: Sequence[_Source]) -> None:
    parts = [part for source in sources for part in source.parts()]
    for part_index, (part, place, key) in enumerate(parts):
        content = place.read(key, limit=MANIFEST_BYTES)
        if sha256_hex(content) != part.manifest_sha256:
            raise CacheError(
                "manifest was changed",
                where=place.locate(key),
                mend="Run vlsi-cache verify: it names the file at fault",
            )
        merged.place.publish(part_key(part_index), content)


def _adopt_processor(target: Place, source: _Source) -> None:
    seal = read_processor_seal(source.folder.place)
    if seal is None or target.size(INDEX_FILE) is not None:
        return
    place = source.folder.place
    for name, wanted in seal.files.items():
        key = f"{PROCESSOR_FOLDER}/{name}"
        # Nothing but its hash proves a processor's file. A shard proves itself wherever it is read.
        if place.size(key) == wanted.num_bytes and (
            sha256_hex(place.read(key, limit=wanted.num_bytes)) != wanted.sha256
        ):
            raise _differs(place.locate(key))
        _adopt(target, key, source, key, wanted)
    target.publish(PROCESSOR_SEAL_FILE, render_document(seal))


def _adopt_shards(
    merged: CacheFolder, sources: Sequence[_Source], advance: Callable[[], None]
) -> None:
    """Adopt what is missing: each shard, then its seal, both unchanged.

    A new seal would hide damage to the shard.
    """
    present = merged.place.list_files(SHARDS_FOLDER)
    wanted = [
        (source, shard_index)
        for source in sources
        for shard_index in range(source.folder.manifest.num_shards)
    ]

    def adopt(number: int) -> None:
        source, shard_index = wanted[number]
        seal = source.index.shards[shard_index]
        if shard_key(number) not in present:
            _adopt(merged.place, shard_key(number), source, shard_key(shard_index), seal)
        if seal_key(number) not in present:
            merged.place.publish(seal_key(number), render_document(seal))

    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(adopt, range(len(wanted))):
            advance()


def _adopt(target: Place, key: str, source: _Source, source_key: str, seal: FileSeal) -> None:
    place = source.folder.place
    if place.size(source_key) == seal.num_bytes:
        if target.adopt(key, place, source_key):
            return
        content = place.read(source_key, limit=seal.num_bytes)
        if sha256_hex(content) == seal.sha256:
            target.publish(key, content)
            return
    raise _differs(place.locate(source_key))


def _differs(where: str) -> CacheError:
    return CacheError(
        "file differs from its seal",
        where=where,
        mend="Run vlsi-cache verify: it names the damaged file",
    )
