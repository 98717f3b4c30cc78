"""The cache as a student reads it: opened, held against its data, in order, in batches."""

from vlsi_cache.student.cached.arrivals import recorded_order
from vlsi_cache.student.cached.batches import CachedBatches
from vlsi_cache.student.cached.checks import (
    validate_contents,
    validate_model,
    validate_tail,
    validate_vocabulary,
)
from vlsi_cache.student.cached.opening import (
    open_cache_of,
    open_matching_cache,
    open_record,
    recorded_failures,
    validate_data,
)
from vlsi_cache.student.cached.order import cache_order

__all__ = [
    "CachedBatches",
    "cache_order",
    "open_cache_of",
    "open_matching_cache",
    "open_record",
    "recorded_failures",
    "recorded_order",
    "validate_contents",
    "validate_data",
    "validate_model",
    "validate_tail",
    "validate_vocabulary",
]
