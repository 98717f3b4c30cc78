"""Verifying a cache: every file is compared with its seal, and no file is trusted alone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vlsi_cache.errors import CacheError
from vlsi_cache.store.cache.folder import (
    CacheFolder,
    list_cache,
    open_folder,
    parse_index,
    read_processor_seal,
    validate_index_version,
)
from vlsi_cache.store.cache.seals import CacheIndex
from vlsi_cache.store.cache.verification.damage import (
    Advice,
    Damage,
    Verification,
    advice_on,
    describe_damage,
)
from vlsi_cache.store.cache.verification.examine import Finding, examine_shard, judge_shard
from vlsi_cache.store.cache.verification.processor import judge_processor
from vlsi_cache.store.cache.verification.trust import judge_manifest
from vlsi_cache.store.places.keys import (
    CARD_FILE,
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

__all__ = ["verify_cache"]

_LITTER: Final = frozenset({"thumbs.db", "desktop.ini"})
"""Names of files that Windows leaves in folders, in small letters."""
_THREADS: Final = 2


def verify_cache(
    path: str | Path, on_progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Read every file of a cache once, and compare it with its seal.

    Args:
        path: Folder or URL of the cache.
        on_progress: called with the bytes read so far, and those of all files.

    Raises:
        CacheError: there is no cache.
    """
    place = open_place(path)
    files = list_cache(place)
    try:
        folder = open_folder(place)
    except CacheError as error:
        if not any(key in files for key in (MANIFEST_FILE, INDEX_FILE, shard_key(0), seal_key(0))):
            raise
        problem = f"{error.what}; without it nothing else can be verified"
        damage = describe_damage((MANIFEST_FILE,), problem, advice_on(error, "manifest"))
        return _unjudged(place, {MANIFEST_FILE: files.get(MANIFEST_FILE, 0)}, [damage])
    return _Check(folder, files, on_progress or (lambda _done, _total: None)).run()


@dataclass(frozen=True, slots=True)
class _Check:
    folder: CacheFolder
    files: dict[str, int]
    on_progress: Callable[[int, int], None]

    def run(self) -> Verification:
        damages: list[Damage] = []
        index = self._read_index(damages)
        is_indexed = index is not None
        examined = self._examine(index)
        trust = judge_manifest(self.folder, index, examined, self.files)
        damages += trust.parts
        if trust.manifest is not None:
            return _unjudged(self.folder.place, self.files, [trust.manifest, *damages])
        findings = examined[: self.folder.manifest.num_shards]
        if index is not None and not _fits(index, self.folder):
            damages.append(self._damage(INDEX_FILE, "belongs to another cache", "index"))
            index = None
        wanted = index.shards if index else [None] * len(findings)
        for shard_index, (finding, seal) in enumerate(zip(findings, wanted, strict=True)):
            damages += judge_shard(self.folder, shard_index, finding, seal)
        damages += judge_processor(self.folder, index, self.files)
        damages += self._find_strays(index)
        num_sealed = sum(finding.is_published and finding.is_sealed for finding in findings)
        return Verification(
            path=self.folder.place.locate(),
            sound=not damages,
            complete=num_sealed == len(findings) and (is_indexed or INDEX_FILE in self.files),
            num_shards=len(findings),
            num_shards_sealed=num_sealed,
            num_files=len(self.files),
            num_bytes=sum(self.files.values()),
            damages=tuple(dict.fromkeys(damages)),
        )

    def _damage(self, key: str, problem: str, advice: Advice) -> Damage:
        return describe_damage((key,), problem, advice, self.folder)

    def _read_index(self, damages: list[Damage]) -> CacheIndex | None:
        try:
            index = parse_index(self.folder.place, self._num_examined)
            if index is not None:
                validate_index_version(self.folder, index)
        except CacheError as error:
            damages.append(self._damage(INDEX_FILE, error.what, advice_on(error, "index")))
            return None
        return index

    @property
    def _num_examined(self) -> int:
        """Shards of the manifest, or of the files if they are more: the manifest may be wrong."""
        sealed = {key.partition(".")[0] for key in self.files if key.startswith(SHARDS_FOLDER)}
        return max(self.folder.manifest.num_shards, len(sealed))

    def _examine(self, index: CacheIndex | None) -> list[Finding]:
        listed = index.shards if index else ()
        total, done, lock = sum(self.files.values()), 0, threading.Lock()

        def examine(shard_index: int) -> Finding:
            nonlocal done
            seal = listed[shard_index] if shard_index < len(listed) else None
            finding = examine_shard(self.folder.place, shard_index, self.files, seal)
            with lock:
                done += finding.num_bytes
                self.on_progress(done, total)
            return finding

        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(examine, range(self._num_examined)))

    def _find_strays(self, index: CacheIndex | None) -> Iterator[Damage]:
        known = {MANIFEST_FILE, INDEX_FILE, PROCESSOR_SEAL_FILE, CARD_FILE}
        for shard_index in range(self.folder.manifest.num_shards):
            known |= {shard_key(shard_index), seal_key(shard_index)}
        known |= {part_key(index) for index in range(len(self.folder.manifest.parts))}
        seals = [index.processor] if index else []
        with contextlib.suppress(CacheError):
            seals.append(read_processor_seal(self.folder.place))
        named = {name for seal in seals if seal for name in seal.files}
        for key in sorted(self.files.keys() - known):
            if key.rpartition("/")[2].lower() in _LITTER:
                continue
            kept = key.startswith(f"{PROCESSOR_FOLDER}/")
            # a processor's file without a readable seal is not sealed yet, or the seal is damaged
            if not kept or (any(seals) and key.partition("/")[2] not in named):
                yield self._damage(key, "does not belong to the cache", "stray")


def _unjudged(place: Place, files: Mapping[str, int], damages: list[Damage]) -> Verification:
    """Report on a cache whose manifest is damaged, so that nothing else can be judged."""
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
