"""A hidden state of the teacher that the student learns: what compares them, and its start."""

from vlsi_cache.student.hidden_state.start import num_start_tokens, start_map
from vlsi_cache.student.hidden_state.target import (
    HiddenTarget,
    hidden_target,
    learns_map,
    validate_hidden,
    validate_hidden_sizes,
)

__all__ = [
    "HiddenTarget",
    "hidden_target",
    "learns_map",
    "num_start_tokens",
    "start_map",
    "validate_hidden",
    "validate_hidden_sizes",
]
