"""Version and limits of the cache format."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

__all__ = [
    "FORMAT_VERSION",
    "LEAST_BITS",
    "MAX_BITS",
    "MAX_DRAWS",
    "MAX_PARTS",
    "MAX_POOL",
    "MAX_SHARDS",
    "MAX_TAPS",
    "MAX_TOP",
    "OUTPUT_TAP",
    "Count",
    "PositiveCount",
    "Sha256",
    "StoredCount",
    "Tap",
]

FORMAT_VERSION: Final = 3
"""Newest version of the cache format. FORMAT.md describes it. This library reads all versions, and
writes the oldest that has the cache's records."""

MAX_DRAWS: Final = 255
"""Most tokens that are drawn per response token and tap."""

MAX_POOL: Final = 65_535
"""Most tokens that are drawn per response token at all taps together."""

MAX_TOP: Final = 2**26
"""Most tokens that are kept per response token at all taps together. A chunk holds at least one
response token."""

LEAST_BITS: Final = 64
"""Fewest signs of a hidden state. A row of zeros is then no state's, and shows a hole."""

MAX_BITS: Final = 2**16
"""Most signs of a hidden state."""

MAX_TAPS: Final = 10**4
"""Most taps of a cache."""

MAX_PARTS: Final = 1000
"""Most parts of a merged cache."""

MAX_SHARDS: Final = 10**6
"""Most shards of a cache."""

OUTPUT_TAP: Final = -1
"""The tap that stands for the model's own output."""

# the bounds keep a hostile manifest from asking for more than any machine holds
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=10**12)]
StoredCount = Annotated[int, Field(ge=0, lt=2**60)]
PositiveCount = Annotated[int, Field(ge=1, le=10**9)]
Tap = Annotated[int, Field(ge=OUTPUT_TAP, le=10**6)]
