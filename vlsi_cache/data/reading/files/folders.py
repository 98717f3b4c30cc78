"""The files of a folder that belong to a split."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from vlsi_cache.data.reading.files.compression import COMPRESSIONS
from vlsi_cache.phases import speaks_for_all

__all__ = [
    "JSON_SUFFIXES",
    "SAVED_FILES",
    "data_suffix",
    "find_data_files",
    "list_names",
    "split_file",
    "split_files",
    "split_names",
    "warn_idle_split",
    "warn_missing",
    "warn_unread",
]

logger = logging.getLogger(__name__)

JSON_SUFFIXES: Final = (".jsonl", ".json", ".ndjson")
"""Suffixes of files with JSON."""
_SPLIT_NAMES: Final = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Names that stand for a split in file names, as in `datasets`."""
_ALL_NAMES: Final = tuple(name for names in _SPLIT_NAMES.values() for name in names)
SAVED_FILES: Final = ("state.json", "dataset_info.json", "dataset_dict.json")
"""Files that `save_to_disk` writes beside its tables."""
_NOT_ROWS: Final = ("dataset_infos.json", *SAVED_FILES)
"""Files that `datasets` writes beside its data."""
_ROW_SUFFIXES: Final = frozenset(
    (*JSON_SUFFIXES, ".parquet", ".csv", ".tsv", ".arrow", ".feather", ".orc", ".avro", ".xlsx")
)
"""Suffixes of files that hold rows, whether or not they are read."""
_NUMBERED: Final = re.compile(r"(.*?)(\d+)-of-(\d+)(.*)")
"""Names such as ``train-00000-of-00004.parquet``."""


def data_suffix(path: Path) -> str:
    """The suffix that names the kind of a file, without that of its compression."""
    name = path.name.lower()
    suffixes = Path(name).suffixes
    if len(suffixes) > 1 and suffixes[-1] in COMPRESSIONS:
        return suffixes[-2]
    return suffixes[-1] if suffixes else ""


def find_data_files(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """The Parquet files, the JSON files and other tables below a folder, in order of their names.

    Links are followed. Files and folders whose names begin with a dot do not count.
    """
    files = sorted(_files(folder))
    tables = [path for path in files if data_suffix(path) == ".parquet"]
    return tables, _json_files(files), [path for path in files if _is_other(path)]


def split_file(folder: Path, split: str) -> Path | None:
    """The JSON file that is named like the split alone, such as ``train.jsonl`` or ``val.json``.

    Other files of the split beside it are listed in the log.
    """
    # Only beside it: below a folder of data there may be a million images.
    every = sorted(path for path in folder.iterdir() if path.is_file())
    files = _json_files(every)
    for name in split_names(split):
        for suffix in JSON_SUFFIXES:
            for path in files:
                if data_suffix(path) == suffix and path.name.partition(".")[0] == name:
                    others = [file for file in every if file in files or _is_other(file)]
                    others = [file for file in others if _may_belong(file.name, split)]
                    warn_unread(folder, split, [path], others)
                    return path
    return None


def split_files(
    folder: Path, split: str, files: Sequence[Path], others: Sequence[Path] = ()
) -> list[Path]:
    """Those of a folder's files that belong to a split.

    Files that are named after no split belong to ``train``, if all files are. Files that may belong
    to the split and are not read are listed in the log, ``others`` of other kinds included.
    """
    names = {path: str(path.relative_to(folder)) for path in files}
    named = [path for path in files if _is_named(names[path], split_names(split))]
    unnamed = [path for path in files if not _is_named(names[path], _ALL_NAMES)]
    if not named and split == "train" and len(unnamed) == len(files):
        named = unnamed
    if named:
        unread = [path for path in others if _may_belong(str(path.relative_to(folder)), split)]
        warn_unread(folder, split, named, [*named, *unnamed, *unread])
        warn_missing(folder, named)
    return named


def warn_unread(folder: Path, split: str, read: Sequence[Path], files: Iterable[Path]) -> None:
    """List the files that are not read."""
    unread = sorted(set(files) - set(read))
    if unread and speaks_for_all():
        logger.warning(
            "%s: split %s is read from %s; not read: %s",
            folder,
            split,
            list_names(folder, read),
            list_names(folder, unread),
        )


def warn_idle_split(name: object, split: str, kind: str) -> None:
    """Say that a split chooses nothing, where the data is one file or table without its name."""
    is_idle = split != "train" and not _is_named(Path(str(name)).name, split_names(split))
    if is_idle and speaks_for_all():
        logger.warning("%s is %s: split %s chooses nothing in it", name, kind, split)


def warn_missing(folder: Path, files: Iterable[Path]) -> None:
    """Say which files are not there, where the names of the others count them."""
    found: dict[tuple[str, int, str], set[int]] = {}
    for path in files:
        match = _NUMBERED.fullmatch(str(path.relative_to(folder)))
        if match is not None:
            group = match[1], int(match[3]), match[4]
            found.setdefault(group, set()).add(int(match[2]))
    for (before, total, after), numbers in sorted(found.items()):
        if len(numbers) < total and speaks_for_all():
            logger.warning(
                "%s: the names of %s*%s count %d files, and %d of them are not there",
                *(folder, before, after, total, total - len(numbers)),
            )


def split_names(split: str) -> tuple[str, ...]:
    """The names of a split, its own first."""
    for names in _SPLIT_NAMES.values():
        if split in names:
            return (split, *(name for name in names if name != split))
    return (split,)


def _json_files(paths: Iterable[Path]) -> list[Path]:
    return sorted(
        path for path in paths if data_suffix(path) in JSON_SUFFIXES and path.name not in _NOT_ROWS
    )


def _is_other(path: Path) -> bool:
    """Whether a file holds rows in a form that is not read."""
    suffixes = Path(path.name.lower()).suffixes
    is_read = data_suffix(path) in (*JSON_SUFFIXES, ".parquet")
    return not is_read and not _ROW_SUFFIXES.isdisjoint(suffixes)


def _may_belong(name: str, split: str) -> bool:
    """Whether a file is named after the split, or after none."""
    return _is_named(name, split_names(split)) or not _is_named(name, _ALL_NAMES)


def _is_named(name: str, splits: Iterable[str]) -> bool:
    """Whether a file or its folder is named after one of the splits."""
    either = "|".join(re.escape(split.lower()) for split in splits)
    return re.search(rf"(?:^|[^a-z])(?:{either})(?:[^a-z]|$)", name.lower()) is not None


def _files(folder: Path) -> Iterator[Path]:
    seen: set[str] = set()
    # Hub downloads are links. A link back to a folder above would never end.
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent) / name for name in files if not name.startswith("."))


def _raise(error: OSError) -> None:
    raise error


def list_names(folder: Path, paths: Sequence[Path]) -> str:
    """The first names of files in a folder, for messages."""
    names = [str(path.relative_to(folder)) for path in paths]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
