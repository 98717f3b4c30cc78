"""The keys of a cache's files."""

from __future__ import annotations

from typing import Final

__all__ = [
    "CACHE_FOLDERS",
    "CARD_FILE",
    "INDEX_FILE",
    "MANIFEST_FILE",
    "PARTS_FOLDER",
    "PROCESSOR_FOLDER",
    "PROCESSOR_SEAL_FILE",
    "SHARDS_FOLDER",
    "part_key",
    "seal_key",
    "shard_key",
]

CARD_FILE: Final = "README.md"
"""The card of a cache that is shared. It is no part of the cache."""
INDEX_FILE: Final = "index.json"
MANIFEST_FILE: Final = "manifest.json"
PARTS_FOLDER: Final = "parts"
PROCESSOR_FOLDER: Final = "processor"
PROCESSOR_SEAL_FILE: Final = "processor.json"
SHARDS_FOLDER: Final = "shards"

CACHE_FOLDERS: Final = (PARTS_FOLDER, PROCESSOR_FOLDER, SHARDS_FOLDER)
"""All folders inside a cache."""


def shard_key(shard_index: int) -> str:
    """Return the key of a shard: a Zarr v3 group in a zip."""
    return f"{SHARDS_FOLDER}/{shard_index:05d}.zarr.zip"


def seal_key(shard_index: int) -> str:
    """Return the key of a shard's seal."""
    return f"{SHARDS_FOLDER}/{shard_index:05d}.json"


def part_key(part_index: int) -> str:
    """Return the key of the copy of a part's manifest in a merged cache."""
    return f"{PARTS_FOLDER}/{part_index:05d}.json"
