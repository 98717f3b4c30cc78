"""Verifying a cache: every file against its seal, without trusting any one of them."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from vlsi_cache.errors import CacheError
from vlsi_cache.store.cache.examine import Finding, examine_shard, judge_shard
from vlsi_cache.store.cache.folder import (
    CacheFolder,
    open_folder,
    parse_index,
    read_processor_seal,
)
from vlsi_cache.store.cache.hashing import hash_file
from vlsi_cache.store.cache.seals import CacheIndex, FileSeal
from vlsi_cache.store.places.place import Place, open_place
from vlsi_cache.store.shards.layout import (
    INDEX_FILE,
    MANIFEST_FILE,
    PROCESSOR_FOLDER,
    PROCESSOR_SEAL_FILE,
    SHARDS_FOLDER,
    part_key,
    seal_key,
    shard_key,
)

__all__ = ["Damage", "Verification", "verify_cache"]

_THREADS: Final = 2
_MEND_MANIFEST: Final = (
    "Restore manifest.json from a copy, or dump the teacher again into a new folder"
)


class _Report(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Damage(_Report):
    """One fault."""

    files: tuple[str, ...]
    """The files at fault, inside the cache; several where it cannot be told which of them is."""
    fault: str
    """What is wrong."""
    mend: str
    """What to do."""


class Verification(_Report):
    """What verifying a cache found."""

    path: str
    """Address of the cache."""
    sound: bool
    """Whether nothing is damaged; an incomplete cache may be sound."""
    complete: bool
    """Whether every shard and the index are published."""
    num_shards: int
    """Shards of the complete cache; 0 if there is no manifest to judge it by."""
    num_shards_sealed: int
    """Shards that are published with their seals."""
    num_files: int
    """Files that were read."""
    num_bytes: int
    """Their bytes."""
    damages: tuple[Damage, ...]
    """All that is wrong, the manifest first, then in the order of files."""


def verify_cache(
    path: str | Path, on_progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Read every file of a cache once, and compare it with its seal.

    Args:
        path: of the cache.
        on_progress: called with the bytes read so far, and those of all files.

    Raises:
        CacheError: there is no cache at all.
    """
    place = open_place(path)
    files = {**place.list_files(), **place.list_files(SHARDS_FOLDER)}
    try:
        folder = open_folder(place)
    except CacheError as error:
        if not any(key in files for key in (MANIFEST_FILE, INDEX_FILE, shard_key(0), seal_key(0))):
            raise
        fault = f"{error.what}; without it nothing else can be verified"
        damage = _damage((MANIFEST_FILE,), fault, _MEND_MANIFEST)
        return _unjudged(place, {MANIFEST_FILE: files.get(MANIFEST_FILE, 0)}, [damage])
    return _Check(folder, files, on_progress or (lambda _done, _total: None)).run()


@dataclass(frozen=True, slots=True)
class _Check:
    folder: CacheFolder
    files: dict[str, int]
    on_progress: Callable[[int, int], None]

    @property
    def _remade(self) -> str:
        return f"Delete {INDEX_FILE} and run {self.folder.command}; it is made anew"

    @property
    def _restored(self) -> str:
        return (
            f"Restore the file from a copy; or delete {PROCESSOR_FOLDER}/, {PROCESSOR_SEAL_FILE} "
            f"and {INDEX_FILE}, and run {self.folder.command}"
        )

    def run(self) -> Verification:
        damages: list[Damage] = []
        index = self._index(damages)
        examined = self._examine()
        folder = self._trusted(index, examined, damages)
        if folder is None:  # nothing can be judged by a manifest that is not the cache's
            return _unjudged(self.folder.place, self.files, damages)
        findings = examined[: folder.manifest.num_shards]
        if index is not None and not _fits(index, folder):
            damages.append(_damage((INDEX_FILE,), "belongs to another cache", self._remade))
            index = None
        wanted = index.shards if index else [None] * len(findings)
        for shard_index, (finding, seal) in enumerate(zip(findings, wanted, strict=True)):
            damages += [
                _damage(*fault) for fault in judge_shard(folder, shard_index, finding, seal)
            ]
        damages += self._processor(index)
        damages += self._extra(index)
        num_sealed = sum(finding.is_published and finding.is_sealed for finding in findings)
        return Verification(
            path=folder.place.locate(),
            sound=not damages,
            complete=num_sealed == len(findings) and INDEX_FILE in self.files,
            num_shards=len(findings),
            num_shards_sealed=num_sealed,
            num_files=len(self.files),
            num_bytes=sum(self.files.values()),
            damages=tuple(dict.fromkeys(damages)),
        )

    def _index(self, damages: list[Damage]) -> CacheIndex | None:
        try:
            return parse_index(self.folder.place, self._num_examined)
        except CacheError as error:
            damages.append(_damage((INDEX_FILE,), error.what, self._remade))
            return None

    @property
    def _num_examined(self) -> int:
        """Shards of the manifest, or as many as there are files: it may be the one at fault."""
        sealed = {key.partition(".")[0] for key in self.files if key.startswith(SHARDS_FOLDER)}
        return max(self.folder.manifest.num_shards, len(sealed))

    def _examine(self) -> list[Finding]:
        total, done, lock = sum(self.files.values()), 0, threading.Lock()

        def examine(shard_index: int) -> Finding:
            nonlocal done
            finding = examine_shard(self.folder.place, shard_index, self.files)
            with lock:
                done += finding.num_bytes
                self.on_progress(done, total)
            return finding

        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(examine, range(self._num_examined)))

    def _trusted(
        self, index: CacheIndex | None, findings: list[Finding], damages: list[Damage]
    ) -> CacheFolder | None:
        """The folder, if its manifest is the one that its parts were made for.

        Nothing above vouches for the manifest; but every shard and the index name its digest. If
        none of them names the digest of the one that is there, they are right and it is wrong.
        """
        votes = Counter(finding.header.cache for finding in findings if finding.header)
        if index is not None:
            votes[index.manifest_sha256] += 1
        if self.folder.manifest.parts:
            return self._trusted_parts(index, findings, damages)
        if not votes or self.folder.digest in votes:
            return self.folder
        files: tuple[str, ...] = (MANIFEST_FILE,)
        if votes.most_common(1)[0][1] == 1:
            lone = [shard_key(i) for i, finding in enumerate(findings) if finding.header]
            files = (*files, *(lone or [INDEX_FILE]))
        damages.insert(
            0, _damage(files, "is not the manifest that the shards name", _MEND_MANIFEST)
        )
        return None

    def _trusted_parts(
        self, index: CacheIndex | None, findings: list[Finding], damages: list[Damage]
    ) -> CacheFolder | None:
        """The folder of a merged cache, if its manifest names the parts that the rest of it names.

        The shards name their part's manifest, of which there is a copy, and the merged manifest
        names it too; the merged manifest itself is named by the index alone.
        """
        folder, digests, doubted = self.folder, list(self.folder.part_digests), False
        votes = [Counter([digest]) for digest in digests]
        for shard_index, finding in enumerate(findings[: folder.manifest.num_shards]):
            part_index = folder.manifest.shard_origin(shard_index).part_index
            if finding.header and part_index is not None:
                votes[part_index][finding.header.cache] += 1
        for part_index, named in enumerate(folder.part_digests):
            key = part_key(part_index)
            own = hash_file(folder.place, key)[0] if key in self.files else None
            if own is not None:
                votes[part_index][own] += 1
            digests[part_index] = votes[part_index].most_common(1)[0][0]
            if digests[part_index] != named:
                doubted = True
            if own is None and any(finding.is_published for finding in findings):
                again = f"Run {folder.command}; it is made anew"
                damages.append(_damage((key,), "is missing", again))
            elif own is not None and own != digests[part_index]:
                again = f"Delete the file and run {folder.command}; it is made anew"
                damages.append(_damage((key,), "is not the manifest that the shards name", again))
        disputed = index is not None and index.manifest_sha256 != folder.digest
        if doubted:
            fault = "names other parts than the shards do"
            damages.insert(0, _damage((MANIFEST_FILE,), fault, _MEND_MANIFEST))
            return None
        if disputed:
            files = (MANIFEST_FILE, INDEX_FILE)
            damages.insert(0, _damage(files, "belong to different caches", _MEND_MANIFEST))
            return None
        return folder

    def _processor(self, index: CacheIndex | None) -> Iterator[Damage]:
        try:
            seal = read_processor_seal(self.folder.place)
        except CacheError as error:
            yield _damage((PROCESSOR_SEAL_FILE,), error.what, self._restored)
            seal = None
        told = [seal] if index is None else [index.processor, seal]
        own = {name: self._processor_file(name) for part in told if part for name in part.files}
        if index is not None and seal != index.processor:
            # whichever the files themselves agree with is right
            if seal is not None and seal.files == own:
                yield _damage((INDEX_FILE,), "differs from the processor's seal", self._remade)
                return
            if PROCESSOR_SEAL_FILE not in self.files:
                yield _damage((PROCESSOR_SEAL_FILE,), "is missing", self._restored)
            elif seal is not None:
                yield _damage((PROCESSOR_SEAL_FILE,), "differs from the index", self._restored)
        trusted = next((part for part in told if part), None)
        for name, wanted in trusted.files.items() if trusted else ():
            if own[name] != wanted:
                fault = "is missing" if own[name] is None else "differs from its seal"
                # without an index a file cannot be told from its seal
                doubtful = (PROCESSOR_SEAL_FILE,) if index is None else ()
                files = (f"{PROCESSOR_FOLDER}/{name}", *doubtful)
                yield _damage(files, fault, self._restored)

    def _processor_file(self, name: str) -> FileSeal | None:
        key = f"{PROCESSOR_FOLDER}/{name}"
        if key not in self.files:
            return None
        digest, num_bytes = hash_file(self.folder.place, key)
        return FileSeal(sha256=digest, num_bytes=num_bytes)

    def _extra(self, index: CacheIndex | None) -> Iterator[Damage]:
        known = {MANIFEST_FILE, INDEX_FILE, PROCESSOR_SEAL_FILE}
        for shard_index in range(self.folder.manifest.num_shards):
            known |= {shard_key(shard_index), seal_key(shard_index)}
        known |= {part_key(index) for index in range(len(self.folder.manifest.parts))}
        seal = None if index is None else index.processor
        with contextlib.suppress(CacheError):
            seal = seal or read_processor_seal(self.folder.place)
        for key in sorted(self.files.keys() - known):
            kept = key.startswith(f"{PROCESSOR_FOLDER}/")
            # unsealed yet, or its seal is told of above
            if not kept or (seal and key.partition("/")[2] not in seal.files):
                yield _damage((key,), "is no part of the cache", "Move the file away")


def _unjudged(place: Place, files: Mapping[str, int], damages: list[Damage]) -> Verification:
    """Where there is no manifest to judge the rest by."""
    return Verification(
        path=place.locate(),
        sound=False,
        complete=False,
        num_shards=0,
        num_shards_sealed=0,
        num_files=len(files),
        num_bytes=sum(files.values()),
        damages=tuple(damages),
    )


def _fits(index: CacheIndex, folder: CacheFolder) -> bool:
    num_shards = folder.manifest.num_shards
    return index.manifest_sha256 == folder.digest and len(index.shards) == num_shards


def _damage(files: tuple[str, ...], fault: str, mend: str) -> Damage:
    return Damage(files=files, fault=fault, mend=mend)
