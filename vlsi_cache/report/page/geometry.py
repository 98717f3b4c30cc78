"""Sizes of a plot in pixels, round numbers beside it, and names that have room."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

__all__ = [
    "BOTTOM",
    "HEIGHT",
    "LEFT",
    "RIGHT",
    "TOP",
    "WIDTH",
    "height_scale",
    "round_ticks",
    "sparse_names",
]

WIDTH: Final = 360
HEIGHT: Final = 220
LEFT, RIGHT, TOP, BOTTOM = 46, 6, 10, 34
_ROOM: Final = 10
"""Names that all have room."""
_MOST_LABELS: Final = 7
"""Names of more things than that."""


def height_scale(low: float, high: float) -> Callable[[float], float]:
    """Return what turns a value between two bounds into pixels from the top."""
    span = (high - low) or 1.0
    return lambda value: TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / span


def round_ticks(low: float, high: float, *, whole: bool) -> list[float]:
    """Return round numbers that enclose the values, about five of them."""
    rough = (high - low) / 4 or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step + 0.0 for index in range(first, max(last, first + 1) + 1)]


def sparse_names(names: Sequence[str]) -> list[str]:
    """Empty the names that have no room. The last one stays."""
    every = 1 if len(names) <= _ROOM else -(-len(names) // _MOST_LABELS)
    last = len(names) - 1
    return [name if (last - index) % every == 0 else "" for index, name in enumerate(names)]
