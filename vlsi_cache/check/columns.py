"""Columns of a dataset that nothing reads."""

from __future__ import annotations

from collections.abc import Mapping

from vlsi_cache.data import ConversationDataset
from vlsi_cache.errors import DataError

__all__ = ["columns_not_read"]

_READ = frozenset({"id", "messages", "conversations", "image", "images"})


def columns_not_read(data: ConversationDataset) -> list[str]:
    """Return the names of the columns that nothing reads, sorted."""
    named = getattr(data, "columns_not_read", None)
    if named is not None:
        return list(named())
    found: set[str] = set()
    for index in range(len(data)):
        try:
            row = data._rows.row(index)  # noqa: SLF001 (until the dataset lists its columns)
        except DataError:
            continue
        found |= set(row) if isinstance(row, Mapping) else set()
    return sorted(found - _READ)
