"""The rows behind a recipe's ``data``: files, folders, names on the hub, and mixtures of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vlsi_cache.data.reading.files.arrowrows import ArrowRows
from vlsi_cache.data.reading.files.beginnings import not_a_file, validate_not_lost
from vlsi_cache.data.reading.files.compression import COMPRESSIONS, is_compressed
from vlsi_cache.data.reading.files.folders import (
    JSON_SUFFIXES,
    SAVED_FILES,
    data_suffix,
    find_data_files,
    list_names,
    split_file,
    split_files,
    warn_idle_split,
    warn_missing,
    warn_unread,
)
from vlsi_cache.data.reading.files.rowsource import JsonRows, RowSource
from vlsi_cache.data.reading.files.tables import load_folder, load_saved, load_table
from vlsi_cache.data.reading.forms.joining import AdaptedRows, JoinedRows, MixedRows
from vlsi_cache.errors import DataError
from vlsi_cache.foldercontents import MODEL_FILES, FolderContents, find_folder_contents
from vlsi_cache.recipe import (
    DATA_FORMS,
    DataSection,
    SourceSection,
    expand_pattern,
    is_there,
    validate_data_name,
)

__all__ = ["describe_section", "open_section"]

logger = logging.getLogger(__name__)

_CONVERSIONS: Final = {
    ".csv": "Convert it: datasets.Dataset.from_csv(FILE).to_json('rows.jsonl')",
    ".tsv": "Convert it: datasets.Dataset.from_csv(FILE, sep='\\t').to_json('rows.jsonl')",
    ".arrow": "Give the folder that save_to_disk wrote. Or convert it: "
    "datasets.Dataset.from_file(FILE).to_json('rows.jsonl')",
    ".tar": "Unpack it, and write its rows into one file of JSON Lines, with the images' paths",
    ".zip": "Unpack it, and give what is inside",
    **dict.fromkeys(("", ".txt", ".jsonlines", ".jl"), "Name it .jsonl if it holds JSON"),
    ".zstd": "Name it .zst",
    **dict.fromkeys((".yaml", ".yml"), "Give it as --recipe, if it is a recipe"),
    **dict.fromkeys((".lz4", ".lzma", ".z", ".br"), "Unpack it, and give what is inside"),
    "other": "Convert it, such as with datasets' load_dataset and to_json",
}
"""What to do with files that are not read, by their suffix."""
_OF_OTHERS: Final = MODEL_FILES | {"manifest.json", "index.json", "verbalizers.json"}
"""Names of JSON files that belong to a model or a cache, where these lie beside them."""


def open_section(section: DataSection) -> RowSource:
    """Open the rows that a recipe's ``data`` names.

    Raises:
        DataError: there is no such file, folder, split or hub name, or it is empty.
    """
    shared = set(section.columns or ())
    if not section.sources:
        return _open_source(_own_source(section), shared)
    sources = section.sources
    return MixedRows(
        [
            _open_source(
                _with_defaults(source, section),
                shared if source.columns is None else set(source.columns),
            )
            for source in sources
        ],
        [source.weight for source in sources],
        [source.limit for source in sources],
        "data.sources",
    )


def describe_section(section: DataSection) -> str:
    """The name of the data, as the user gave it."""
    if not section.sources:
        return ", ".join(_paths(section.path or ""))
    return ", ".join(
        " ".join(_paths(source.path)) + (f" × {source.weight:g}" if source.weight != 1 else "")
        for source in section.sources
    )


def _own_source(section: DataSection) -> SourceSection:
    return _with_defaults(SourceSection(path=section.path or ""), section)


def _with_defaults(source: SourceSection, section: DataSection) -> SourceSection:
    """The source. What it does not say is as ``data`` says."""
    names = ("split", "revision", "columns", "image_root")
    absent = {name: getattr(section, name) for name in names if getattr(source, name) is None}
    return source.model_copy(update=absent)


def _paths(path: str | Sequence[str]) -> list[str]:
    return [path] if isinstance(path, str) else list(path)


def _open_source(source: SourceSection, not_met: set[str]) -> RowSource:
    names = [name for path in _paths(source.path) for name in expand_pattern(path)]
    rows = _open_one(names[0], source, None) if len(names) == 1 else _open_several(names, source)
    root = source.image_root
    if root is not None and not is_there(root):
        logger.warning("data.image_root: there is no such folder: %s. No picture is found", root)
    if source.columns or root is not None:
        return AdaptedRows(rows, source.columns or {}, root, not_met)
    return rows


def _open_several(names: Sequence[str], source: SourceSection) -> RowSource:
    if not names:
        raise DataError("no data is named", where="data.path", expected=DATA_FORMS)
    paths = [Path(name) for name in names]
    is_table = all(path.suffix.lower() == ".parquet" for path in paths)
    if is_table and len({path.parent for path in paths}) == 1:
        table = load_table("parquet", names[0], "train", {"data_files": list(names)})
        return ArrowRows(table, f"{paths[0].parent.name}/*.parquet", paths[0].parent)
    # Two folders may have files of the same name.
    is_unique = len({path.name for path in paths}) == len(paths)
    return JoinedRows(
        [
            _open_one(name, source, path.name if is_unique else name)
            for name, path in zip(names, paths, strict=True)
        ]
    )


def _open_one(name: str, source: SourceSection, origin: str | None) -> RowSource:
    if not name.strip():
        validate_data_name(name)
    path = Path(name)
    split = source.split or "train"
    base, _, config = name.rpartition(":")
    is_configured = not is_there(path) and bool(base) and is_there(Path(base))
    if source.revision is not None and (is_there(path) or is_configured):
        raise DataError("data.revision is for a name on the hub", where=name, found="a path")
    if is_there(path):
        if path.is_dir():
            return _open_folder(path, split)
        rows = _open_file(path, origin)
        warn_idle_split(path, split, "one file")
        return rows
    if is_configured:
        table = load_table(base, name, split, {"name": config})
        return ArrowRows(table, Path(base).name, Path(base))
    validate_data_name(name)
    return _open_hub(name, split, source.revision)


def _open_hub(name: str, split: str, revision: str | None) -> RowSource:
    owner, _, config = name.partition(":")
    options = {"name": config or None, "revision": revision}
    given = {key: value for key, value in options.items() if value is not None}
    return ArrowRows(load_table(owner, name, split, given), name, Path())


def _open_file(path: Path, origin: str | None) -> RowSource:
    if not path.is_file():
        raise not_a_file(path)
    if path.name in SAVED_FILES and any(path.parent.glob("*.arrow")):
        raise DataError(
            "the file belongs to what save_to_disk wrote, and is not data",
            where=path,
            mend=f"Give its folder, {path.parent}",
        )
    if path.name in _OF_OTHERS and not (contents := _listed(path.parent)).may_be_rows:
        raise DataError(
            f"the file belongs to {contents.words}, and is not data",
            where=path,
            mend=f"Give {DATA_FORMS}",
        )
    suffix = data_suffix(path)
    if suffix in JSON_SUFFIXES:
        return JsonRows(path, origin)
    if suffix == ".parquet" and not is_compressed(path):
        table = load_table("parquet", str(path), "train", {"data_files": [str(path)]})
        return ArrowRows(table, origin or path.name, path.parent)
    validate_not_lost(path)
    raise DataError(
        "unknown kind of data file",
        where=path,
        expected=f"{DATA_FORMS}. JSON may be compressed ({', '.join(COMPRESSIONS)})",
        found="".join(path.suffixes[-2:]) or "no suffix",
        mend=_CONVERSIONS.get(suffix, _CONVERSIONS["other"]),
    )


def _open_folder(folder: Path, split: str) -> RowSource:
    contents = _listed(folder)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return ArrowRows(load_saved(folder, split), folder.name, folder)
    file = split_file(folder, split)
    if file is not None:
        return JsonRows(file)
    if not contents.may_be_rows:
        raise _not_data(folder, contents)
    tables, files, others = find_data_files(folder)
    saved = [path.parent for path in others if (path.parent / "state.json").is_file()]
    if saved and not tables and not files:
        raise DataError(
            "the folder is not a dataset, and folders in it are",
            where=folder,
            found=list_names(folder, list(dict.fromkeys(saved))),
            mend=f"Give one of them, such as {saved[0]}",
        )
    for path in (*tables, *files):
        if path.exists() and not path.is_file():  # a pipe would wait for its writer
            raise not_a_file(path)
    if tables:
        if files or others:
            warn_unread(folder, split, tables, [*files, *others])
        warn_missing(folder, tables)
        return ArrowRows(load_folder(folder, split, tables), folder.name, folder)
    chosen = split_files(folder, split, files, others)
    if not chosen:
        raise DataError(
            f"folder has no file of the split {split}" if files else "folder holds no dataset",
            where=folder,
            expected=f"what save_to_disk wrote, Parquet files, or {split}.jsonl",
            found=list_names(folder, files or others) if files or others else contents.words,
            mend=None if files or not others else _CONVERSIONS.get(data_suffix(others[0])),
        )
    _validate_parents(folder, chosen)
    rows = [JsonRows(path, str(path.relative_to(folder))) for path in chosen]
    return rows[0] if len(rows) == 1 else JoinedRows(rows)


def _listed(folder: Path) -> FolderContents:
    try:
        return find_folder_contents(folder)
    except OSError as error:
        raise DataError(
            "folder cannot be listed", where=folder, found=error.strerror, mend="Check its rights"
        ) from error


def _not_data(folder: Path, contents: FolderContents) -> DataError:
    return DataError(
        "the folder is not data",
        where=folder,
        expected="what save_to_disk wrote, or files of JSON Lines or Parquet",
        found=contents.words,
        mend=f"Give {DATA_FORMS}",
    )


def _validate_parents(folder: Path, files: Sequence[Path]) -> None:
    """Refuse files of JSON that all lie in models and caches inside a folder."""
    seen: dict[Path, bool] = {}
    for path in files:
        parents = [path.parent, *path.parent.parents]
        inside = parents[: parents.index(folder)]
        for parent in inside:
            if parent not in seen:
                seen[parent] = _listed(parent).may_be_rows
        if all(seen[parent] for parent in inside):
            return
    first = files[0].parent
    raise _not_data(first, _listed(first))
