"""Writing a cache, shard by shard, by any number of runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vlsi_cache.differences import Difference
from vlsi_cache.errors import CacheError, CacheMismatchError
from vlsi_cache.manifest import (
    CacheManifest,
    HiddenIdentity,
    explain_difference,
    find_manifest_differences,
    is_same_library,
)
from vlsi_cache.store.cache.documents import render_document
from vlsi_cache.store.cache.folder import (
    CacheFolder,
    find_missing_shards,
    open_folder,
    read_index,
)
from vlsi_cache.store.cache.processors import saved_processor
from vlsi_cache.store.cache.sealing import (
    publish_index,
    seal_processor,
    seal_shard,
    seal_unsealed,
    validate_processor,
)
from vlsi_cache.store.cache.seals import CacheIndex
from vlsi_cache.store.places.keys import (
    CACHE_FOLDERS,
    MANIFEST_FILE,
    seal_key,
    shard_key,
)
from vlsi_cache.store.places.opening import open_place
from vlsi_cache.store.places.place import Place
from vlsi_cache.store.shards.address import ShardAddress
from vlsi_cache.store.shards.arrays import validate_storable
from vlsi_cache.store.shards.packing import pack_shard
from vlsi_cache.store.shards.records import SampleRecord, ShardRecord

__all__ = ["CacheWriter", "Pack", "begin_cache", "create_cache", "validate_beginnable"]

Pack = Callable[[ShardAddress, ShardRecord], bytes]
"""Makes a shard's file, as ``pack_shard`` does."""


def create_cache(
    path: str | Path, manifest: CacheManifest, processor: Path | None = None
) -> CacheWriter:
    """Begin a cache, or go on with one that was begun with the same settings.

    Unfinished work of a killed writer is deleted or completed.

    Args:
        path: Folder, which is made with its parents, or URL of an object store.
        manifest: Manifest of the cache.
        processor: Folder that ``save_pretrained`` filled with the teacher's processor. The cache
            keeps a copy, unless it has one or is complete.

    Returns:
        A writer, whose ``missing_shards`` are still to be written.

    Raises:
        CacheMismatchError: the cache there was begun with other settings, or keeps a processor
            that decides otherwise.
        CacheError: the folder holds something else, a damaged manifest or index, or unsealed
            files of another processor.
    """
    begun = begin_cache(path, manifest)
    index = read_index(begun)
    if processor is not None:
        # before the index, which contains its seal
        same_library = is_same_library(begun.manifest, manifest)
        seal_processor(begun.place, processor, same_library=same_library)
    seal_unsealed(begun, index)
    return CacheWriter(begun, index, publish_index(begun))


def validate_beginnable(
    path: str | Path, known: Mapping[str, object], processor: Path | None = None
) -> None:
    """Refuse early what ``create_cache`` would refuse after hours of the teacher's work.

    Args:
        path: Folder or URL of the cache.
        known: Fields of its manifest that are known already.
        processor: Folder of the teacher's processor, as for ``create_cache``.

    Raises:
        CacheMismatchError, CacheError: as in ``create_cache``, or the place cannot be used.
    """
    place = open_place(path)
    place.validate_usable()
    if place.size(MANIFEST_FILE) is None:
        _validate_empty(place)
        return
    begun = open_folder(place)
    wanted = begun.manifest.model_copy(update=known)
    _validate_same(begun, wanted)
    if processor is not None:
        same_library = is_same_library(begun.manifest, wanted)
        validate_processor(place, saved_processor(processor), same_library=same_library)


def begin_cache(path: str | Path, manifest: CacheManifest) -> CacheFolder:
    """Publish a cache's manifest, or validate that the published one is of the same cache.

    Raises:
        CacheMismatchError: the cache there was begun with other settings.
        CacheError: the folder holds something else, or a damaged manifest.
    """
    place = open_place(path)
    place.validate_usable()
    if place.size(MANIFEST_FILE) is None:
        _validate_empty(place)
        place.publish(MANIFEST_FILE, render_document(manifest))
    # read back even if just written, because another writer may have been first
    begun = open_folder(place)
    _validate_same(begun, manifest)
    # not before the manifest is validated, because the folder may hold something else
    place.clear_leftovers(CACHE_FOLDERS)
    return begun


def _validate_same(begun: CacheFolder, wanted: CacheManifest) -> None:
    found = find_manifest_differences(begun.manifest, wanted)
    if found:
        raise CacheMismatchError(
            "cache was begun with other settings",
            problems=[explain_difference(difference) for difference in found],
            where=begun.place.locate(),
            mend="Choose another cache folder, or go back to those settings"
            + _record_of(begun, found),
        )


def _record_of(begun: CacheFolder, found: Sequence[Difference]) -> str:
    """Return how a recipe says the begun cache's record, if the difference is there."""
    sampling = begun.manifest.sampling
    names = ("sampling.k", "sampling.m", "sampling.drawn_from")
    values: dict[str, object] = {}
    if any(item.path in names for item in found):
        values = {"k": sampling.k, "m": sampling.m, "drawn_from": sampling.drawn_from}
    if any(item.path.partition(".")[0] == "hidden" for item in found):
        hidden = begun.manifest.hidden
        values["hidden"] = "null" if hidden is None else _kept(hidden)
    settings = " ".join(f"--set cache.{name}={value}" for name, value in values.items())
    return f": {settings}" if settings else ""


def _kept(hidden: HiddenIdentity) -> str:
    return f"'{{block: {hidden.block}, bits: {hidden.bits}}}'"


class CacheWriter:
    """Publishes shards of a cache. ``create_cache`` makes it.

    Attributes:
        manifest: Manifest of the cache.
    """

    def __init__(self, folder: CacheFolder, index: CacheIndex | None, unsealed: set[int]) -> None:
        self.manifest = folder.manifest
        self._folder = folder
        self._index = index
        self._unsealed = unsealed

    def missing_shards(self) -> list[int]:
        """Find the indices of the shards that are not published yet, ascending."""
        return find_missing_shards(self._folder)

    def has_shard(self, shard_index: int) -> bool:
        """Report whether a shard is published, by any writer."""
        return self._folder.place.size(shard_key(shard_index)) is not None

    def write_shard(
        self,
        shard_index: int,
        records: Sequence[SampleRecord],
        pack: Pack = pack_shard,
    ) -> None:
        """Publish a shard in one step. A published shard stays as it is.

        The last shard of the cache publishes the index too.

        Args:
            shard_index: Index of the shard.
            records: Records of the samples ``manifest.shard_range(shard_index)``, in order.
            pack: makes the shard's file.

        Raises:
            IndexError: the shard does not exist.
            ValueError: the number of records is not the shard's.
            CacheError: a record does not fit the manifest or is not a distribution, or the disk is
                full.
        """
        expected = len(self.manifest.shard_range(shard_index))
        if len(records) != expected:
            raise ValueError(f"shard {shard_index} takes {expected} records, not {len(records)}")
        for record in records:
            validate_storable(record, self.manifest)
        content = pack(self._folder.address(shard_index), ShardRecord.join(records))
        won = self._folder.place.publish(shard_key(shard_index), content)
        seal_shard(self._folder, shard_index, self._index, content if won else None)
        self._unsealed.discard(shard_index)
        self._end()

    def finish(self) -> None:
        """Seal the unsealed shards of other writers. Publish the index if nothing is missing.

        Raises:
            CacheError: a shard that is to be sealed is damaged.
        """
        seal_unsealed(self._folder, self._index)
        self._unsealed = publish_index(self._folder)

    def _end(self) -> None:
        """Publish the index if every shard is sealed.

        A look at the last unsealed shard mostly shows that one remains. Listing all of them after
        each shard would take time that grows with the square of their number.
        """
        last = max(self._unsealed, default=None)
        if last is None or self._folder.place.size(seal_key(last)) is not None:
            self._unsealed = publish_index(self._folder)


def _validate_empty(place: Place) -> None:
    # another writer of the same cache may publish its manifest just now
    others = list(place.list_files())
    if others and place.size(MANIFEST_FILE) is None:
        raise CacheError(
            f"folder is not empty, and holds no {MANIFEST_FILE}",
            where=place.locate(),
            found=", ".join(others[:5]),
            mend="Choose another cache folder",
        )
