"""Layer matching: which teacher taps each student tap learns from (VLsI, CVPR 2025)."""

from vlsi_cache.matching.match import Match, match_layers
from vlsi_cache.matching.paths import expected_shares, shortest_path
from vlsi_cache.matching.reach import candidate_mask, temperature
from vlsi_cache.matching.settings import Matching, Strategy, check_room

__all__ = [
    "Match",
    "Matching",
    "Strategy",
    "candidate_mask",
    "check_room",
    "expected_shares",
    "match_layers",
    "shortest_path",
    "temperature",
]
