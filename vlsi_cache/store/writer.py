"""Writing a cache, shard by shard, by as many runs as it takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlsi_cache.errors import CacheError, CacheMismatchError
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.store.arrays import prove_storable
from vlsi_cache.store.folder import find_missing_shards, read_manifest
from vlsi_cache.store.layout import MANIFEST_FILE, SHARDS_FOLDER, shard_path
from vlsi_cache.store.publish import publish_file, publish_folder, remove_leftovers
from vlsi_cache.store.records import SampleRecord, ShardRecord
from vlsi_cache.store.shard import write_shard_group

__all__ = ["CacheWriter", "create_cache"]


def create_cache(path: str | Path, manifest: CacheManifest) -> CacheWriter:
    """Begin a cache, or go on with one that was begun with the same settings.

    Args:
        path: folder; it and its parents are made if need be.
        manifest: what the cache is to hold.

    Returns:
        A writer; ``missing_shards`` tells what is left to do.

    Raises:
        CacheMismatchError: the cache there was begun with other settings.
        CacheError: the folder holds something else, or a damaged manifest.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise CacheError("is a file, not a folder", where=path, mend="Choose another path")
    path.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    if not (path / MANIFEST_FILE).exists():
        _prove_empty(path)
        content = manifest.model_dump_json(indent=2) + "\n"
        publish_file(path / MANIFEST_FILE, content.encode())
    # read back even if just written: another writer may have been first
    begun = read_manifest(path)
    found = begun.differences_from(manifest)
    if found:
        raise CacheMismatchError(
            "cache was begun with other settings: " + "; ".join(found),
            where=path,
            mend="Choose another cache folder, or go back to those settings",
        )
    (path / SHARDS_FOLDER).mkdir(exist_ok=True)
    remove_leftovers(path / SHARDS_FOLDER)
    return CacheWriter(path, begun)


class CacheWriter:
    """Publishes shards of a cache; made by ``create_cache``.

    Attributes:
        path: the cache's folder.
        manifest: as the cache was begun with.
    """

    def __init__(self, path: Path, manifest: CacheManifest) -> None:
        self.path = path
        self.manifest = manifest

    def missing_shards(self) -> list[int]:
        """Indices of the shards that are not published yet, ascending."""
        return find_missing_shards(self.path, self.manifest)

    def write_shard(self, shard_index: int, records: Sequence[SampleRecord]) -> None:
        """Publish a shard in one step; one that is there already stays as it is.

        Args:
            shard_index: which shard.
            records: of the samples ``manifest.shard_range(shard_index)``, in order.

        Raises:
            IndexError: there is no such shard.
            ValueError: the number of records is another than the shard's.
            CacheError: a record does not fit the manifest, or is not a distribution.
        """
        expected = len(self.manifest.shard_range(shard_index))
        if len(records) != expected:
            raise ValueError(f"shard {shard_index} takes {expected} records, not {len(records)}")
        for record in records:
            prove_storable(record, self.manifest)
        with publish_folder(shard_path(self.path, shard_index)) as folder:
            write_shard_group(folder, shard_index, ShardRecord.join(records), self.manifest)


def _prove_empty(path: Path) -> None:
    # another writer of the same cache may be at its manifest just now
    others = [entry.name for entry in path.iterdir() if not entry.name.startswith(".")]
    if others and not (path / MANIFEST_FILE).exists():
        raise CacheError(
            f"folder is not empty, and holds no {MANIFEST_FILE}",
            where=path,
            found=", ".join(sorted(others)[:5]),
            mend="Choose another cache folder",
        )
