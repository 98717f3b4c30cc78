"""The cache on disk: a folder of Zarr v3 groups that any number of runs may fill, and read."""

from vlsi_cache.store.merge import merge_caches
from vlsi_cache.store.reader import Cache, open_cache
from vlsi_cache.store.records import SampleRecord, ShardRecord
from vlsi_cache.store.verify import Damage, Verification, verify_cache
from vlsi_cache.store.writer import CacheWriter, create_cache

__all__ = [
    "Cache",
    "CacheWriter",
    "Damage",
    "SampleRecord",
    "ShardRecord",
    "Verification",
    "create_cache",
    "merge_caches",
    "open_cache",
    "verify_cache",
]
