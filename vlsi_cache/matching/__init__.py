"""Layer matching: which teacher taps each student tap learns from (VLsI, CVPR 2025)."""

from vlsi_cache.matching.match import Match, match_layers
from vlsi_cache.matching.paths import ExpectedMatch, expected_match, shortest_path
from vlsi_cache.matching.reach import candidate_mask, temperature, validate_reach

__all__ = [
    "ExpectedMatch",
    "Match",
    "candidate_mask",
    "expected_match",
    "match_layers",
    "shortest_path",
    "temperature",
    "validate_reach",
]
