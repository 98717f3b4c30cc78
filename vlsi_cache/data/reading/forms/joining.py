"""Several sources as one: one after another, or mixed by their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlsi_cache.data.reading.files.rowsource import RowSource
from vlsi_cache.data.reading.stamps import Stamps
from vlsi_cache.errors import DataError, counted

__all__ = ["AdaptedRows", "JoinedRows", "MixedRows"]


class JoinedRows:
    """The rows of several sources, one source after another."""

    def __init__(self, sources: Sequence[RowSource]) -> None:
        self._sources = sources
        self._ends = np.cumsum([len(source) for source in sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _find(self, index: int) -> tuple[RowSource, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[number - 1]) if number else 0
        return self._sources[number], index - start

    def files(self) -> dict[str, Stamps]:
        """The files of all sources, or none if one of them has none."""
        found = [source.files() for source in self._sources]
        return {name: stamp for own in found for name, stamp in own.items()} if all(found) else {}

    def is_current(self) -> bool:
        """Whether all sources are."""
        return all(source.is_current() for source in self._sources)

    def columns_not_met(self) -> set[str]:
        """Those of any source."""
        return set[str]().union(*(source.columns_not_met() for source in self._sources))

    def folder(self, index: int) -> Path:
        """Folder that a row's relative image paths start from."""
        source, own = self._find(index)
        return source.folder(own)

    def origin(self, index: int) -> str:
        """Name of a row in its source."""
        source, own = self._find(index)
        return source.origin(own)

    def row(self, index: int) -> object:
        """The decoded row."""
        source, own = self._find(index)
        return source.row(own)


class MixedRows(JoinedRows):
    """The rows of several sources, each evenly spread over the whole.

    The order follows from the sizes and the weights alone. A row costs 8 bytes.

    Args:
        sources: the sources.
        weights: how often each takes its rows. 2 takes every row twice, and 0.5 every second one.
        limits: most rows of each, from its beginning.
        name: name of the mixture, for errors.

    Raises:
        DataError: a source gives no row.
    """

    def __init__(
        self,
        sources: Sequence[RowSource],
        weights: Sequence[float],
        limits: Sequence[int | None],
        name: str,
    ) -> None:
        super().__init__(sources)
        taken: list[np.ndarray[Any, Any]] = []
        for source, weight, limit in zip(sources, weights, limits, strict=True):
            size = len(source) if limit is None else min(limit, len(source))
            count = round(weight * size)
            if count == 0:
                raise DataError(
                    "a source of the mixture gives no row",
                    where=f"{name}, {source.origin(0)}",
                    found=f"{counted(size, 'row')} with weight {weight:g}",
                    mend="Raise its weight, or leave it out",
                )
            taken.append(_taken(size, count))
        starts = self._ends - [len(source) for source in sources]
        places = np.concatenate([(np.arange(len(rows)) + 0.5) / len(rows) for rows in taken])
        rows = np.concatenate([start + own for start, own in zip(starts, taken, strict=True)])
        # A stable order: of rows at the same place, the first source's goes first.
        self._order = rows[np.argsort(places, kind="stable")]

    def __len__(self) -> int:
        return len(self._order)

    def _find(self, index: int) -> tuple[RowSource, int]:
        return super()._find(int(self._order[index]))


def _taken(size: int, count: int) -> np.ndarray[Any, Any]:
    """The rows of a source that are taken: all of them as often as it goes, and then some, evenly
    spread.
    """
    rounds, remaining = divmod(count, size)
    spread = np.arange(remaining) * size // max(remaining, 1)
    return np.concatenate([np.tile(np.arange(size), rounds), spread]).astype(np.int64)


class AdaptedRows:
    """Rows under other names of columns, with images in another folder.

    Args:
        rows: the rows.
        columns: our name by their name. None leaves the column out.
        folder: folder that relative image paths start from. None is the rows' own.
        not_met: those of the columns that no row had so far. Sources that share a mapping share it,
            because a column may stand in one of them alone.
    """

    def __init__(
        self,
        rows: RowSource,
        columns: Mapping[str, str | None],
        folder: Path | None,
        not_met: set[str],
    ) -> None:
        self._rows = rows
        self._columns = columns
        self._own_folder = folder
        self._not_met = not_met

    def __len__(self) -> int:
        return len(self._rows)

    def files(self) -> dict[str, Stamps]:
        """The files of the rows."""
        return self._rows.files()

    def is_current(self) -> bool:
        """Whether the rows are."""
        return self._rows.is_current()

    def columns_not_met(self) -> set[str]:
        """Names of columns that none of the rows had which were read."""
        return set(self._not_met)

    def folder(self, index: int) -> Path:
        """Folder that a row's relative image paths start from."""
        return self._rows.folder(index) if self._own_folder is None else self._own_folder

    def origin(self, index: int) -> str:
        """Name of the row in its source."""
        return self._rows.origin(index)

    def row(self, index: int) -> object:
        """The row with its columns renamed.

        Raises:
            DataError: two columns would have the same name.
        """
        row = self._rows.row(index)
        if not isinstance(row, Mapping):
            return row
        self._not_met.difference_update(row)
        renamed = {key: value for key, value in row.items() if key not in self._columns}
        for theirs, ours in self._columns.items():
            if ours is None or row.get(theirs) is None:
                continue
            if renamed.get(ours) is not None:
                raise DataError(
                    f"data.columns renames {theirs} to {ours}, which the row has already",
                    where=self.origin(index),
                    mend=f"Leave the other one out with data.columns: {{{ours}: null}}",
                )
            renamed[ours] = row[theirs]
        return renamed
