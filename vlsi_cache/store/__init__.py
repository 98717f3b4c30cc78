"""The cache: a folder of Zarr v3 groups, which any number of runs may fill and read."""

from vlsi_cache.store.cache.figures.statistics import summarize_cache
from vlsi_cache.store.cache.figures.summary import CacheSummary, TapSummary
from vlsi_cache.store.cache.folder import count_shards, is_begun
from vlsi_cache.store.cache.merge import merge_caches
from vlsi_cache.store.cache.packer import Packer
from vlsi_cache.store.cache.reader import DECODED_BYTES, Cache, ShardOutline, open_cache
from vlsi_cache.store.cache.recorded import nothing_recorded, validate_recorded
from vlsi_cache.store.cache.verification.agreement import validate_sizes
from vlsi_cache.store.cache.verification.damage import Damage, Verification
from vlsi_cache.store.cache.verification.verify import verify_cache
from vlsi_cache.store.cache.writer import (
    CacheWriter,
    Pack,
    create_cache,
    validate_beginnable,
)
from vlsi_cache.store.places.opening import url_scheme
from vlsi_cache.store.shards.layout import CHUNK_TOKENS, token_bytes
from vlsi_cache.store.shards.packing import pack_shard
from vlsi_cache.store.shards.records import SampleRecord, ShardRecord

__all__ = [
    "CHUNK_TOKENS",
    "DECODED_BYTES",
    "Cache",
    "CacheSummary",
    "CacheWriter",
    "Damage",
    "Pack",
    "Packer",
    "SampleRecord",
    "ShardOutline",
    "ShardRecord",
    "TapSummary",
    "Verification",
    "count_shards",
    "create_cache",
    "is_begun",
    "merge_caches",
    "nothing_recorded",
    "open_cache",
    "pack_shard",
    "summarize_cache",
    "token_bytes",
    "url_scheme",
    "validate_beginnable",
    "validate_recorded",
    "validate_sizes",
    "verify_cache",
]
