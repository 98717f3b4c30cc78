"""The manifest: what a cache was made from, and how its samples are laid out in shards."""

from vlsi_cache.manifest.comparison import (
    explain_difference,
    find_kind_differences,
    find_manifest_differences,
    is_same_library,
)
from vlsi_cache.manifest.identity import (
    CachePart,
    ConfigIdentity,
    DatasetIdentity,
    HiddenIdentity,
    Sampling,
    TeacherIdentity,
    TokenizerIdentity,
    format_version_of,
    rotation_width,
)
from vlsi_cache.manifest.limits import (
    FORMAT_VERSION,
    MAX_BITS,
    MAX_DRAWS,
    MAX_PARTS,
    MAX_POOL,
    MAX_SHARDS,
    MAX_TOP,
    OUTPUT_TAP,
    Sha256,
    StoredCount,
)
from vlsi_cache.manifest.manifest import CacheManifest
from vlsi_cache.manifest.sharding import ShardOrigin

__all__ = [
    "FORMAT_VERSION",
    "MAX_BITS",
    "MAX_DRAWS",
    "MAX_PARTS",
    "MAX_POOL",
    "MAX_SHARDS",
    "MAX_TOP",
    "OUTPUT_TAP",
    "CacheManifest",
    "CachePart",
    "ConfigIdentity",
    "DatasetIdentity",
    "HiddenIdentity",
    "Sampling",
    "Sha256",
    "ShardOrigin",
    "StoredCount",
    "TeacherIdentity",
    "TokenizerIdentity",
    "explain_difference",
    "find_kind_differences",
    "find_manifest_differences",
    "format_version_of",
    "is_same_library",
    "rotation_width",
]
