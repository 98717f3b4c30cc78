"""Values of a [tokens × vocabulary] plane at chosen ids, collected tile by tile.

Shape suffixes: N tokens, V vocabulary entries of one tile, E chosen ids per token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

__all__ = ["Lookup", "MaskedLookup", "SortedLookup", "lookup_for"]


class Lookup(ABC):
    """Finds the chosen ids that lie in a tile. One lookup serves all tiles of some tokens."""

    @abstractmethod
    def collect(self, rows: slice, tile_NV: Tensor, into_NE: Tensor) -> None:
        """Write the tile's values at the chosen ids inside it, in place.

        Args:
            rows: the tile's rows of the head.
            tile_NV: values of the tile.
            into_NE: takes the values. Entries outside the tile stay as they are.
        """


@final
class MaskedLookup(Lookup):
    """Reads every id for every tile. No shape depends on the ids, so nothing waits for a device.

    Args:
        ids_NE: the chosen ids, long.
    """

    def __init__(self, ids_NE: Tensor) -> None:
        self.ids_NE = ids_NE

    def collect(self, rows: slice, tile_NV: Tensor, into_NE: Tensor) -> None:
        """Six passes over all ids, for each tile."""
        # Ids outside the tile read some value inside it, and the mask discards it again.
        local_NE = self.ids_NE - rows.start
        inside_NE = (local_NE >= 0) & (local_NE < tile_NV.shape[1])
        found_NE = tile_NV.gather(1, local_NE.clamp_(0, tile_NV.shape[1] - 1))
        torch.where(inside_NE, found_NE.to(into_NE.dtype), into_NE, out=into_NE)


@final
class SortedLookup(Lookup):
    """Sorts the ids once, and reads each id once. It suits a CPU, which has no queue to wait for.

    Args:
        ids_NE: the chosen ids, long.
    """

    def __init__(self, ids_NE: Tensor) -> None:
        self.ids, self.entry = ids_NE.flatten().sort()
        self.token = self.entry // max(ids_NE.shape[1], 1)

    def collect(self, rows: slice, tile_NV: Tensor, into_NE: Tensor) -> None:
        """One pass over the ids of this tile, which are neighbours once sorted."""
        edges = torch.tensor([rows.start, rows.start + tile_NV.shape[1]])
        first, stop = torch.searchsorted(self.ids, edges).tolist()
        part = slice(first, stop)
        flat = self.token[part] * tile_NV.shape[1] + (self.ids[part] - rows.start)
        found = tile_NV.view(-1)[flat].to(into_NE.dtype)
        into_NE.view(-1)[self.entry[part]] = found


def lookup_for(device: torch.device) -> Callable[[Tensor], Lookup]:
    """Return the kind of lookup that is fastest on a device."""
    return SortedLookup if device.type == "cpu" else MaskedLookup
