"""Ids of checked rows, with the numbers that a run gives to repeated ones."""

from __future__ import annotations

from array import array

import numpy as np

from vlsi_cache.data import ConversationDataset
from vlsi_cache.data.reading.forms.names import Repetitions, find_repetitions, name_digest
from vlsi_cache.errors import DataError

__all__ = ["RowIds"]


class RowIds:
    """Digests of the ids of rows in order. A row that cannot be read has its number for an id."""

    def __init__(self) -> None:
        self._digests = array("Q")

    def note(self, name: str) -> None:
        """Note the id of the next row."""
        self._digests.append(name_digest(name))

    def repetitions(self, data: ConversationDataset) -> Repetitions:
        """Find the rows whose id an earlier row has."""
        return find_repetitions(np.array(self._digests), lambda row: _name(data, row))


def _name(data: ConversationDataset, row: int) -> str:
    try:
        return data[row].sample_id
    except DataError:
        return str(row)
