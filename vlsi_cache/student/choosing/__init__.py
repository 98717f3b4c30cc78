"""Which samples a student learns from, and which it is measured on."""

from vlsi_cache.student.choosing.held_out import HeldOutSamples, chosen_by, held_out_of
from vlsi_cache.student.choosing.holding_out import find_held_out
from vlsi_cache.student.choosing.selection import open_selecting_cache, with_selection

__all__ = [
    "HeldOutSamples",
    "chosen_by",
    "find_held_out",
    "held_out_of",
    "open_selecting_cache",
    "with_selection",
]
