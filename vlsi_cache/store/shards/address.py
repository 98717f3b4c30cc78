"""``ShardAddress``: where a shard lies, and what it must name."""

from __future__ import annotations

from dataclasses import dataclass

from vlsi_cache.manifest import CacheManifest
from vlsi_cache.store.places.keys import seal_key, shard_key
from vlsi_cache.store.places.place import Place

__all__ = ["ShardAddress"]


@dataclass(frozen=True, slots=True)
class ShardAddress:
    """One shard of a cache, whether it is published or not."""

    place: Place
    """Where the cache lies."""
    manifest: CacheManifest
    """The cache's manifest."""
    shard_index: int
    """Number of the shard in the cache."""
    digest: str
    """SHA-256 of the manifest that the shard must name: in a merged cache, the part's."""
    own_index: int
    """Number that the shard must name: in a merged cache, its number in the part."""
    command: str
    """The command that writes the shard if it is missing, after "Run"."""

    @property
    def key(self) -> str:
        """Key of the shard's file."""
        return shard_key(self.shard_index)

    @property
    def seal_key(self) -> str:
        """Key of the shard's seal."""
        return seal_key(self.shard_index)

    @property
    def where(self) -> str:
        """The file's address, for errors."""
        return self.place.locate(self.key)

    @property
    def num_samples(self) -> int:
        """Number of samples that the shard must hold."""
        return len(self.manifest.shard_range(self.shard_index))
