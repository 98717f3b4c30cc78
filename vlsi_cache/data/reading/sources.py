"""The rows behind a dataset's name: a file, a folder or a name on the hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vlsi_cache.data.reading.rowsource import ArrowRows, JsonRows, RowSource
from vlsi_cache.errors import DataError, first_line

__all__ = ["open_rows"]

_JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
_FORMS = "a .jsonl, .json or .parquet file, a folder of datasets or Parquet, or a hub name"


def open_rows(source: str, split: str) -> RowSource:
    """Open the rows behind a dataset's name.

    Raises:
        DataError: there is no such file, folder, split or hub name, or it is empty.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _open_folder(path, split)
    if path.is_file():
        if path.suffix.lower() in _JSON_SUFFIXES:
            return JsonRows(path)
        if path.suffix.lower() == ".parquet":
            return ArrowRows(_load("parquet", source, "train", [path]), path.name, path.parent)
        raise DataError(
            "unknown kind of data file", where=source, expected=_FORMS, found=path.suffix
        )
    # A hub name is "dataset" or "owner/dataset". Anything else that does not exist is a slip.
    if path.suffix or source.count("/") > 1 or source.startswith((".", "~", os.sep)) or not source:
        raise DataError(
            "there is no such data file or folder",
            where=source or "data",
            mend=f"Give {_FORMS}",
        )
    return ArrowRows(_load(source, source, split), source, Path())


def _open_folder(folder: Path, split: str) -> RowSource:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return ArrowRows(_load_saved(folder, split), folder.name, folder)
    for suffix in _JSON_SUFFIXES:
        if (folder / f"{split}{suffix}").is_file():
            return JsonRows(folder / f"{split}{suffix}")
    if any(folder.rglob("*.parquet")):
        return ArrowRows(_load(str(folder), str(folder), split), folder.name, folder)
    raise DataError(
        "folder holds no dataset",
        where=folder,
        expected=f"what save_to_disk wrote, Parquet files, or {split}.jsonl",
    )


def _load_saved(folder: Path, split: str) -> Any:
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise DataError(
            "dataset folder cannot be read", where=folder, found=first_line(error)
        ) from error
    if not isinstance(saved, DatasetDict):
        return saved
    if split not in saved:
        raise DataError(
            "dataset has no such split",
            where=folder,
            expected="one of " + ", ".join(map(str, saved)),
            found=split,
        )
    return saved[split]


def _load(builder: str, source: str, split: str, files: list[Path] | None = None) -> Any:
    # Imported late: datasets takes a second, which JSON readers need not pay.
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    paths = None if files is None else [str(path) for path in files]
    try:
        return load_dataset(builder, data_files=paths, split=split)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise DataError(
            "dataset cannot be loaded",
            where=source,
            expected=f"{_FORMS}, with a split {split}",
            found=first_line(error),
        ) from error
