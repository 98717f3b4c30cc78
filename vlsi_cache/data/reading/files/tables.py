"""Tables that `datasets` loads: saved folders, Parquet files and names on the hub."""

from __future__ import annotations

import errno
import filecmp
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from vlsi_cache.data.reading.files.folders import (
    find_data_files,
    split_files,
    split_names,
    warn_idle_split,
)
from vlsi_cache.data.reading.files.tabledamage import ARROW_END, find_damage, find_saved_damage
from vlsi_cache.errors import DataError, first_line
from vlsi_cache.phases import speaks_for_all

__all__ = ["load_folder", "load_saved", "load_table"]

logger = logging.getLogger(__name__)

_REMEMBERED: Final = ("cache-", "tmp")
"""How the names of tables begin that `datasets` keeps of its own work."""
_GENERAL: Final = "An error occurred while generating the dataset"
_NO_ROWS: Final = "BatchSize must be greater than 0"
"""What `datasets` says of a Parquet file that has columns and no rows."""
_NO_TYPE: Final = "does not have a datasets dtype equivalent"
_NO_PLACE: Final = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT)
_READERS: Final = "datasets.packaged_modules"
"""Loggers of `datasets` that speak of a damaged file before the error does."""


def load_saved(folder: Path, split: str) -> Any:
    """Load what `save_to_disk` wrote.

    Raises:
        DataError: the folder cannot be read, or has no such split.
    """
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(str(folder))
        for table in saved.values() if isinstance(saved, DatasetDict) else (saved,):
            # Offsets of a damaged file would lead out of its memory.
            table.data.validate(full=True)
            for file in table.cache_files:
                _validate_end(Path(file["filename"]))
    except Exception as error:  # whatever datasets raises on damaged files
        raise find_saved_damage(folder) or DataError(
            "dataset folder cannot be read",
            where=folder,
            found=first_line(error),
            mend="Copy it again, or save it again with save_to_disk",
        ) from error
    if not isinstance(saved, DatasetDict):
        if str(saved.split) not in split_names(split):
            warn_idle_split(folder, split, "one table")
        _warn_of_strays(saved)
        return saved
    for name in split_names(split):
        if name in saved:
            _warn_of_strays(saved[name])
            return saved[name]
    raise DataError(
        "dataset has no such split",
        where=folder,
        expected="one of " + ", ".join(map(str, saved)),
        found=split,
    )


def _warn_of_strays(table: Any) -> None:
    """List the tables beside those that a saved dataset names, and those that are there twice."""
    read = [Path(file["filename"]) for file in table.cache_files]
    same = [str(path.name) for path in _repeated(read)]
    if same and speaks_for_all():
        logger.warning(
            "%s: its rows are there twice, since %s holds what a table before it does",
            *(read[0].parent, ", ".join(same)),
        )
    for folder in sorted({path.parent for path in read}):
        beside = {path.name for path in folder.glob("*.arrow")} - {path.name for path in read}
        strays = sorted(name for name in beside if not name.startswith(_REMEMBERED))
        if strays and speaks_for_all():
            logger.warning(
                "%s: state.json does not name %s, which %s not read",
                folder,
                ", ".join(strays[:8]) + (" …" if len(strays) > 8 else ""),
                "is" if len(strays) == 1 else "are",
            )


def _repeated(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the files that hold the same bytes as an earlier one."""
    sizes: dict[int, list[Path]] = {}
    for path in paths:
        alike = sizes.setdefault(path.stat().st_size, [])
        if any(filecmp.cmp(path, other, shallow=False) for other in alike):
            yield path
        alike.append(path)


def _validate_end(path: Path) -> None:
    """Refuse a file that lacks the mark at its end. Arrow reads what is there of it.

    Raises:
        ValueError: the file is cut off.
    """
    with path.open("rb") as file:
        file.seek(-min(len(ARROW_END), path.stat().st_size), os.SEEK_END)
        if file.read() != ARROW_END:
            raise ValueError(f"{path.name} is cut off")


def load_folder(folder: Path, split: str, tables: Sequence[Path]) -> Any:
    """Load the Parquet files of a folder that belong to a split, by the names of the files.

    Raises:
        DataError: they cannot be read, or have no such split.
    """
    root = folder.resolve()
    is_whole = all(path.parent.resolve().is_relative_to(root) for path in tables)
    # datasets does not follow links to folders. Among files of several kinds, it reads the most
    # frequent kind and drops the others. A README with configurations says what is meant.
    if is_whole or (folder / "README.md").is_file():
        table = _load_named(folder, split)
        if table.info.builder_name == "parquet" or (folder / "README.md").is_file():
            return table
    files = split_files(folder, split, tables)
    if not files:
        raise DataError("dataset has no such split", where=folder, found=split)
    return load_table("parquet", str(folder), split, {"data_files": {split: list(map(str, files))}})


def _load_named(folder: Path, split: str) -> Any:
    """Load a folder, with a split of another name for the same if there is none of this name."""
    problem: DataError | None = None
    for name in split_names(split):
        try:
            return load_table(str(folder), str(folder), name, {})
        except DataError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def load_table(builder: str, source: str, split: str, options: Mapping[str, Any]) -> Any:
    """Load a dataset by the name of its builder: ``parquet``, a folder, or a name on the hub.

    Args:
        builder: what `load_dataset` calls the path.
        source: the name as the user gave it, for errors.
        split: the split.
        options: other arguments of `load_dataset`.

    Raises:
        DataError: it cannot be loaded.
    """
    # Imported late: datasets takes a second, which JSON readers need not pay.
    from datasets import load_dataset

    try:
        with _without_their_words():
            return load_dataset(builder, split=split, **options)
    except Exception as error:  # whatever datasets raises on damaged files and unknown names
        damage = find_damage(_files_of(builder, options)) if _may_be_damaged(error) else None
        if damage is not None:
            raise damage from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        needs_config = bool(lines) and lines[0].startswith("Config name is missing")
        raise DataError(
            "dataset cannot be loaded",
            where=source,
            expected=f"data with a split {split}",
            found=" ".join(lines[:2]) if needs_config else _problem(error),
            mend=f"Name one as {source}:CONFIG" if needs_config else _advice(error),
        ) from error


@contextmanager
def _without_their_words() -> Iterator[None]:
    """Keep the readers of `datasets` from logging what the error says."""
    readers = logging.getLogger(_READERS)
    level = readers.level
    readers.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        readers.setLevel(level)


def _may_be_damaged(error: Exception) -> bool:
    """Whether a file's bytes may be the reason. Reading all of them again takes its time."""
    import pyarrow

    return any(
        isinstance(one, pyarrow.ArrowException | OSError) for one in (error, error.__cause__)
    )


def _files_of(builder: str, options: Mapping[str, Any]) -> list[Path]:
    """The Parquet files that `load_dataset` was to read, as far as they lie here."""
    given = options.get("data_files")
    names = [name for part in given.values() for name in part] if isinstance(given, dict) else given
    if names:
        return [Path(name) for name in names]
    return find_data_files(Path(builder))[0] if Path(builder).is_dir() else []


def _advice(error: Exception) -> str | None:
    """What mends a folder in which `datasets` keeps what it converts, or a type it lacks."""
    if _NO_TYPE in str(error):
        return "Store this column as JSON text, or leave it out of the file"
    for one in (error, error.__cause__):
        if isinstance(one, OSError) and one.errno in _NO_PLACE:
            return "Set HF_DATASETS_CACHE to a folder with room that can be written"
    return None


def _problem(error: Exception) -> str:
    """What stands behind the general words in which `datasets` reports most problems."""
    from datasets.table import CastError

    cause = error.__cause__
    if isinstance(cause, CastError):
        return f"files of other columns: {cause.details()}"
    if str(error) != _GENERAL or not isinstance(cause, Exception):
        return first_line(error)
    problem = first_line(cause)
    return "a file without rows" if problem.startswith(_NO_ROWS) else problem
