"""Which file of a table is damaged, and where. It is asked only once a table could not be read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from vlsi_cache.contents import find_contents, find_link
from vlsi_cache.errors import DataError, counted, first_line

__all__ = ["ARROW_END", "find_damage", "find_saved_damage"]

ARROW_END: Final = b"\xff\xff\xff\xff\0\0\0\0"
"""The mark at the end of Arrow's streaming format, which `datasets` writes."""
_PARQUET_MARK: Final = b"PAR1"
_AGAIN: Final = "Copy or download it again"
_DOCUMENTS: Final = ("dataset_dict.json", "state.json", "dataset_info.json")


def find_damage(paths: Iterable[Path]) -> DataError | None:
    """Find the first damaged one of some Parquet files. The ends of all are looked at first."""
    files = list(paths)
    for find in (_parquet_frame, _parquet_rows):
        for path in files:
            problem = find(path)
            if problem is not None:
                return problem
    return None


def find_saved_damage(folder: Path) -> DataError | None:
    """Find the first damaged file of a folder that `save_to_disk` wrote."""
    for part in _parts(folder):
        for name in _DOCUMENTS:
            if (part / name).exists():
                problem = _document(part / name)
                if problem is not None:
                    return problem
        for name in ("state.json", "dataset_info.json"):
            if not (part / name).is_file():
                return _missing(part / name)
        for path in _arrow_files(part):
            problem = _arrow_file(path)
            if problem is not None:
                return problem
    return None


def _parts(folder: Path) -> list[Path]:
    """The folders of the splits, or the folder itself."""
    try:
        splits = json.loads((folder / "dataset_dict.json").read_bytes())["splits"]
        return [folder / str(split) for split in splits]
    except (OSError, ValueError, KeyError, TypeError):
        return [folder]


def _document(path: Path) -> DataError | None:
    """Find what is wrong with a small file of JSON."""
    contents = _contents(path, "text", "JSON")
    if contents is not None:
        return contents
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        return DataError("file is not JSON", where=path, found=first_line(error), mend=_AGAIN)
    if isinstance(found, Mapping):
        return None
    return DataError(
        "file is not what save_to_disk wrote",
        where=path,
        expected="a JSON object",
        found=f"a {type(found).__name__}",
        mend=_AGAIN,
    )


def _contents(path: Path, words: str, expected: str) -> DataError | None:
    """Find what a file holds in place of what is expected."""
    if not path.is_file():
        return _missing(path)
    try:
        found = find_contents(path)
    except OSError as error:
        return DataError("file cannot be read", where=path, found=error.strerror)
    if found.words == words:
        return None
    return DataError(f"file is not {expected}, but {found.words}", where=path, mend=found.mend)


def _missing(path: Path) -> DataError:
    return DataError("file is missing", where=path, found=find_link(path), mend=_AGAIN)


def _parquet_frame(path: Path) -> DataError | None:
    """Find what is wrong with the marks at both ends of a file."""
    other = _contents(path, "Parquet", "Parquet")
    if other is not None:
        return other
    if _end(path, len(_PARQUET_MARK)) == _PARQUET_MARK:
        return None
    return DataError(
        "file is cut off",
        where=path,
        expected="PAR1, the mark of Parquet, at its end",
        found=f"another end after {path.stat().st_size:,} bytes",
        mend=_AGAIN,
    )


def _parquet_rows(path: Path) -> DataError | None:
    """Find the first rows of a file that cannot be decoded."""
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
    except Exception as error:  # whatever Arrow raises on damaged bytes
        return DataError(
            "file is damaged in its footer", where=path, found=first_line(error), mend=_AGAIN
        )
    with table:
        for place, read in _pieces(table):
            try:
                read()
            except Exception as error:
                return DataError(
                    f"file is damaged in {place}", where=path, found=first_line(error), mend=_AGAIN
                )
    return None


def _pieces(table: Any) -> Iterator[tuple[str, Any]]:
    """Each column of each group of rows, with what reads it."""
    start = 0
    for group in range(table.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        for column in table.schema_arrow.names:
            yield (
                f"column {column} of rows {start:,} to {start + rows - 1:,}",
                lambda group=group, column=column: table.read_row_group(group, [column]),
            )
        start += rows


def _arrow_files(part: Path) -> list[Path]:
    """The files of a saved dataset, as its state names them."""
    try:
        named = json.loads((part / "state.json").read_bytes())["_data_files"]
        return [part / str(file["filename"]) for file in named]
    except (OSError, ValueError, KeyError, TypeError):
        return sorted(part.glob("*.arrow"))


def _arrow_file(path: Path) -> DataError | None:
    """Find how far a file can be read."""
    other = _contents(path, "Arrow", "Arrow")
    if other is not None:
        return other
    import pyarrow

    rows = 0
    try:
        with pyarrow.OSFile(str(path)) as file, pyarrow.ipc.open_stream(file) as stream:
            for batch in stream:
                batch.validate(full=True)
                rows += len(batch)
    except Exception as error:  # whatever Arrow raises on damaged bytes
        return DataError(
            f"file is damaged after {counted(rows, 'row')}",
            where=path,
            found=first_line(error),
            mend=_AGAIN,
        )
    if _end(path, len(ARROW_END)) == ARROW_END:
        return None
    return DataError(
        f"file is cut off after {counted(rows, 'row')}",
        where=path,
        expected="the mark of Arrow at its end",
        mend=_AGAIN,
    )


def _end(path: Path, num_bytes: int) -> bytes:
    with path.open("rb") as file:
        file.seek(-min(num_bytes, path.stat().st_size), os.SEEK_END)
        return file.read()
