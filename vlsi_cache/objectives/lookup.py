"""Values of a [tokens × vocabulary] plane at chosen ids, collected as its tiles pass by.

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
    """Which chosen ids lie in a tile; made once for all tiles of some tokens."""

    @abstractmethod
    def collect(self, rows: slice, tile_NV: Tensor, into_NE: Tensor) -> None:
        """Write the tile's values at those chosen ids that lie in it, in place.

        Args:
            rows: the tile's part of the vocabulary.
            tile_NV: its values.
            into_NE: gets them; other entries stay as they are.
        """


@final
class MaskedLookup(Lookup):
    """Looks at every id for every tile: nothing depends on the ids' values, so no device waits.

    Args:
        ids_NE: long.
    """

    def __init__(self, ids_NE: Tensor) -> None:
        self.ids_NE = ids_NE

    def collect(self, rows: slice, tile_NV: Tensor, into_NE: Tensor) -> None:
        """Six passes over all ids, for each tile."""
        local_NE = self.ids_NE - rows.start
        inside_NE = (local_NE >= 0) & (local_NE < tile_NV.shape[1])
        found_NE = tile_NV.gather(1, local_NE.clamp_(0, tile_NV.shape[1] - 1))
        torch.where(inside_NE, found_NE.to(into_NE.dtype), into_NE, out=into_NE)


@final
class SortedLookup(Lookup):
    """Sorts the ids once, and looks at each once: for the CPU, which has no queue to wait for.

    Args:
        ids_NE: long.
    """

    def __init__(self, ids_NE: Tensor) -> None:
        self.ids, self.place = ids_NE.flatten().sort()
        self.token = self.place // max(ids_NE.shape[1], 1)

    def collect(self, rows: slice, tile_NV: Tensor, into_NE: Tensor) -> None:
        """One pass over the ids of this tile, which are neighbours once sorted."""
        edges = torch.tensor([rows.start, rows.start + tile_NV.shape[1]])
        first, stop = torch.searchsorted(self.ids, edges).tolist()
        part = slice(first, stop)
        flat = self.token[part] * tile_NV.shape[1] + (self.ids[part] - rows.start)
        found = tile_NV.view(-1)[flat].to(into_NE.dtype)
        into_NE.view(-1)[self.place[part]] = found


def lookup_for(device: torch.device) -> Callable[[Tensor], Lookup]:
    """The kind of lookup that is fastest on a device."""
    return SortedLookup if device.type == "cpu" else MaskedLookup
