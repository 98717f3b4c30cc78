"""Rows of a `datasets.Dataset`, as plain values."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from vlsi_cache.data.reading.files.strictjson import parse_row_json
from vlsi_cache.data.reading.stamps import Stamps, are_settled, settled_stamps
from vlsi_cache.errors import DataError, first_line
from vlsi_cache.phases import speaks_for_all

__all__ = ["ArrowRows"]

logger = logging.getLogger(__name__)

_OPEN_OBJECTS: Final = ("arguments", "parameters", "properties", "chat_template_kwargs")
"""Fields whose keys differ from row to row."""
_LISTS: Final = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")


class ArrowRows:
    """Rows of a `datasets.Dataset`, memory-mapped by it. Images stay undecoded.

    Args:
        dataset: the table.
        name: first part of the rows' names.
        folder: folder that relative image paths start from.

    Raises:
        DataError: there are no rows.
    """

    def __init__(self, dataset: Any, name: str, folder: Path) -> None:
        if len(dataset) == 0:
            raise DataError("dataset is empty", where=name, mend="Give at least one conversation")
        # Arrow's own view of a row leaves datasets.Image as its bytes and path, at any depth.
        self._dataset = dataset.with_format("arrow")
        self._name = name
        self._folder = folder
        names = [str(Path(file["filename"]).absolute()) for file in dataset.cache_files]
        stamps = settled_stamps(names)
        self._files = dict(zip(names, stamps[:, None], strict=True))
        self._was_settled = are_settled(stamps)
        _warn_filled(self._dataset[:1].schema, name)

    def __len__(self) -> int:
        return len(self._dataset)

    def files(self) -> dict[str, Stamps]:
        """The files of the table, unless it lies in memory."""
        return self._files

    def is_current(self) -> bool:
        """Whether a change since they were opened would show in their stamps."""
        return self._was_settled

    def columns_not_met(self) -> set[str]:
        """None, because no column is renamed here."""
        return set()

    def folder(self, index: int) -> Path:
        """Folder that relative image paths start from."""
        return self._folder

    def origin(self, index: int) -> str:
        """Dataset and 0-based row."""
        return f"{self._name}[{index}]"

    def row(self, index: int) -> object:
        """The row as plain Python values. Fields that hold null are left out at every depth.

        A table gives every struct the fields of all rows, and fills them with null.

        Raises:
            DataError: the row cannot be decoded.
        """
        try:
            table = self._dataset[index : index + 1]
            row = table.to_pylist()[0]
        except Exception as error:  # whatever Arrow raises on damaged bytes
            raise DataError(
                "row cannot be decoded", where=self.origin(index), found=first_line(error)
            ) from error
        plain = {field.name: _plain(row[field.name], field.type) for field in table.schema}
        return {name: value for name, value in plain.items() if value is not None}


def _plain(value: Any, kind: Any) -> Any:
    if value is None:
        return None
    if getattr(kind, "extension_name", None) == "arrow.json":
        return parse_row_json(value)
    name = _kind_name(kind)
    if name == "struct":
        fields = {field.name: _plain(value[field.name], field.type) for field in kind.fields}
        return {key: field for key, field in fields.items() if field is not None}
    if name in _LISTS:
        return [_plain(item, kind.value_type) for item in value]
    return value


def _kind_name(kind: Any) -> str:
    """The type without its parameters, such as ``list`` for ``list<item: string>``."""
    return str(kind).partition("<")[0].partition("[")[0]


def _warn_filled(schema: Any, name: str) -> None:
    """Say that null in some fields cannot be distinguished from a field that is not there."""
    found = sorted({path for field in schema for path in _find_open(field)})
    if found and speaks_for_all():
        logger.warning(
            "%s stores %s as columns. Keys that hold null are left out, because every row has the "
            "keys of all others. JSON text in their place is exact",
            name,
            ", ".join(found),
        )


def _find_open(field: Any, path: str = "") -> Iterator[str]:
    """Names of objects that the table stores field by field."""
    kind = field.type
    name = f"{path}.{field.name}" if path else field.name
    while _kind_name(kind) in _LISTS:
        kind = kind.value_type
    if _kind_name(kind) != "struct":
        return
    if field.name in _OPEN_OBJECTS:
        yield name
        return
    for inner in kind.fields:
        yield from _find_open(inner, name)
