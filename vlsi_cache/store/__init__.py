"""The cache on disk: a folder of Zarr v3 groups that any number of runs may fill, and read."""

from vlsi_cache.store.cache.folder import is_begun
from vlsi_cache.store.cache.merge import merge_caches
from vlsi_cache.store.cache.reader import DECODED_BYTES, Cache, ShardOutline, open_cache
from vlsi_cache.store.cache.statistics import CacheSummary, TapSummary, summarize_cache
from vlsi_cache.store.cache.verify import Damage, Verification, verify_cache
from vlsi_cache.store.cache.writer import CacheWriter, create_cache, prove_beginnable
from vlsi_cache.store.shards.layout import CHUNK_TOKENS, token_bytes
from vlsi_cache.store.shards.records import SampleRecord, ShardRecord

__all__ = [
    "CHUNK_TOKENS",
    "DECODED_BYTES",
    "Cache",
    "CacheSummary",
    "CacheWriter",
    "Damage",
    "SampleRecord",
    "ShardOutline",
    "ShardRecord",
    "TapSummary",
    "Verification",
    "create_cache",
    "is_begun",
    "merge_caches",
    "open_cache",
    "prove_beginnable",
    "summarize_cache",
    "token_bytes",
    "verify_cache",
]
