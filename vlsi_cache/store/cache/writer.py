"""Writing a cache, shard by shard, by as many runs as it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vlsi_cache.errors import CacheError, CacheMismatchError
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.store.cache.documents import render_document
from vlsi_cache.store.cache.folder import CacheFolder, find_missing_shards, open_folder
from vlsi_cache.store.cache.sealing import publish_index, seal_processor, seal_shard, seal_unsealed
from vlsi_cache.store.places.place import Place, open_place
from vlsi_cache.store.shards.arrays import prove_storable
from vlsi_cache.store.shards.layout import CACHE_FOLDERS, MANIFEST_FILE, seal_key, shard_key
from vlsi_cache.store.shards.records import SampleRecord, ShardRecord
from vlsi_cache.store.shards.shard import pack_shard

__all__ = ["CacheWriter", "begin_cache", "create_cache", "prove_beginnable"]


def create_cache(
    path: str | Path, manifest: CacheManifest, processor: Path | None = None
) -> CacheWriter:
    """Begin a cache, or go on with one that was begun with the same settings.

    What a killed writer left half done is cleared away or completed.

    Args:
        path: folder, which is made with its parents if need be; or URL of an object store.
        manifest: what the cache is to hold.
        processor: folder that ``save_pretrained`` filled with the teacher's processor, a copy of
            which is kept unless there is one; a complete cache stays as it is.

    Returns:
        A writer; ``missing_shards`` tells what is left to do.

    Raises:
        CacheMismatchError: the cache there was begun with other settings.
        CacheError: the folder holds something else, a damaged manifest, or what another writer
            left of another processor.
    """
    begun = begin_cache(path, manifest)
    if processor is not None:
        seal_processor(begun.place, processor)  # before the index, which takes up its seal
    seal_unsealed(begun)
    return CacheWriter(begun, publish_index(begun))


def prove_beginnable(path: str | Path, known: Mapping[str, object]) -> None:
    """Refuse early what ``create_cache`` would refuse after hours of the teacher's work.

    Args:
        path: folder or URL of the cache to be.
        known: fields of its manifest that are known already.

    Raises:
        CacheMismatchError, CacheError: as in ``create_cache``; or the place cannot be used.
    """
    place = open_place(path)
    place.prove_usable()
    if place.size(MANIFEST_FILE) is None:
        _prove_empty(place)
        return
    begun = open_folder(place)
    _prove_same(begun, begun.manifest.model_copy(update=known))


def begin_cache(path: str | Path, manifest: CacheManifest) -> CacheFolder:
    """Publish a cache's manifest, or prove that the one there asks for the same cache.

    Raises:
        CacheMismatchError: the cache there was begun with other settings.
        CacheError: the folder holds something else, or a damaged manifest.
    """
    place = open_place(path)
    place.prove_usable()
    if place.size(MANIFEST_FILE) is None:
        _prove_empty(place)
        place.publish(MANIFEST_FILE, render_document(manifest))
    # read back even if just written: another writer may have been first
    begun = open_folder(place)
    _prove_same(begun, manifest)
    place.clear_leftovers(CACHE_FOLDERS)  # not before: the folder may be somebody else's
    return begun


def _prove_same(begun: CacheFolder, wanted: CacheManifest) -> None:
    found = begun.manifest.differences_from(wanted)
    if found:
        raise CacheMismatchError(
            "cache was begun with other settings: " + "; ".join(found),
            where=begun.place.locate(),
            mend="Choose another cache folder, or go back to those settings",
        )


class CacheWriter:
    """Publishes shards of a cache; made by ``create_cache``.

    Attributes:
        manifest: as the cache was begun with.
    """

    def __init__(self, folder: CacheFolder, unsealed: set[int]) -> None:
        self.manifest = folder.manifest
        self._folder = folder
        self._unsealed = unsealed

    def missing_shards(self) -> list[int]:
        """Indices of the shards that are not published yet, ascending."""
        return find_missing_shards(self._folder)

    def has_shard(self, shard_index: int) -> bool:
        """Whether a shard is published, by whichever writer."""
        return self._folder.place.size(shard_key(shard_index)) is not None

    def write_shard(self, shard_index: int, records: Sequence[SampleRecord]) -> None:
        """Publish a shard in one step; one that is there already stays as it is.

        With the last shard of the cache its index is published too.

        Args:
            shard_index: which shard.
            records: of the samples ``manifest.shard_range(shard_index)``, in order.

        Raises:
            IndexError: there is no such shard.
            ValueError: the number of records is another than the shard's.
            CacheError: a record does not fit the manifest, or is not a distribution; or there is
                no room.
        """
        expected = len(self.manifest.shard_range(shard_index))
        if len(records) != expected:
            raise ValueError(f"shard {shard_index} takes {expected} records, not {len(records)}")
        for record in records:
            prove_storable(record, self.manifest)
        content = pack_shard(self._folder, shard_index, ShardRecord.join(records))
        won = self._folder.place.publish(shard_key(shard_index), content)
        seal_shard(self._folder, shard_index, content if won else None)
        self._unsealed.discard(shard_index)
        self._end()

    def finish(self) -> None:
        """Seal what other writers left unsealed, then publish the index if nothing is missing.

        Raises:
            CacheError: a shard that is to be sealed is damaged.
        """
        seal_unsealed(self._folder)
        self._unsealed = publish_index(self._folder)

    def _end(self) -> None:
        """Publish the index if nothing is left to seal.

        One look at the last of the shards that were unsealed tells mostly that there is: to list
        all of them after each would take the square of their number.
        """
        last = max(self._unsealed, default=None)
        if last is None or self._folder.place.size(seal_key(last)) is not None:
            self._unsealed = publish_index(self._folder)


def _prove_empty(place: Place) -> None:
    # another writer of the same cache may be at its manifest just now
    others = list(place.list_files())
    if others and place.size(MANIFEST_FILE) is None:
        raise CacheError(
            f"folder is not empty, and holds no {MANIFEST_FILE}",
            where=place.locate(),
            found=", ".join(others[:5]),
            mend="Choose another cache folder",
        )
