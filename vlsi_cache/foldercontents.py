"""What a folder holds, in words, whatever it was meant to be."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["MODEL_FILES", "FolderContents", "find_folder_contents"]

MODEL_FILES: Final = frozenset(
    {
        "added_tokens.json",
        "chat_template.json",
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "preprocessor_config.json",
        "processor_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    }
)
"""Names of the JSON files of a model."""
_MOST_NAMES: Final = 2000
"""Names of a folder that are looked at. A folder of pictures may have millions."""
_SHOWN: Final = 3
_HEAD_BYTES: Final = 1 << 16
_ROWS: Final = (".jsonl", ".ndjson", ".parquet", ".arrow", ".csv", ".tsv", ".gz", ".zst", ".tar")
_PICTURES: Final = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".ckpt")
_PROCESSOR: Final = frozenset(
    {"tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"}
)


@dataclass(frozen=True, slots=True)
class FolderContents:
    """What a folder holds."""

    words: str
    """What it is, as a noun."""
    may_be_rows: bool
    """Whether it may hold rows of data, as far as the names of its files show."""


def find_folder_contents(folder: Path) -> FolderContents:
    """Find what a folder holds, by the names of its files.

    Raises:
        OSError: it cannot be listed.
    """
    with os.scandir(folder) as entries:
        names = {entry.name for entry in itertools.islice(entries, _MOST_NAMES)}
    shown = {name for name in names if not name.startswith(".")}
    for is_such, words in _OTHERS:
        if is_such(folder, shown):
            return FolderContents(words, may_be_rows=any(map(_is_table, shown)))
    return FolderContents(_words(shown), may_be_rows=True)


def _is_model(folder: Path, names: Collection[str]) -> bool:
    if "config.json" not in names:
        return False
    if any(name.endswith(_WEIGHTS) for name in names) or not _PROCESSOR.isdisjoint(names):
        return True
    if not (folder / "config.json").is_file():  # opening a pipe might never end
        return False
    try:
        with (folder / "config.json").open("rb") as file:
            return b'"model_type"' in file.read(_HEAD_BYTES)
    except OSError:
        return False


def _is_processor(_: Path, names: Collection[str]) -> bool:
    return not _PROCESSOR.isdisjoint(names) and not any(map(_holds_rows, names))


def _is_weights(_: Path, names: Collection[str]) -> bool:
    return any(name.endswith(_WEIGHTS) for name in names) and not any(map(_holds_rows, names))


def _has_shards(folder: Path, names: Collection[str]) -> bool:
    return "shards" in names and any((folder / "shards").glob("*.zarr.zip"))


_Test = Callable[[Path, Collection[str]], bool]
_OTHERS: Final[tuple[tuple[_Test, str], ...]] = (
    (lambda _, names: "manifest.json" in names and "shards" in names, "a cache of vlsi-cache"),
    (_has_shards, "a cache without its manifest.json"),
    (lambda _, names: any(name.endswith(".zarr.zip") for name in names), "the shards of a cache"),
    (lambda _, names: "verbalizers.json" in names, "trained verbalizers"),
    (
        lambda folder, names: "cache" in names and (folder / "cache" / "manifest.json").is_file(),
        "the output of a run, with a cache in its folder cache",
    ),
    (lambda _, names: "stage.json" in names and "config.json" not in names, "a stage of a run"),
    (
        lambda _, names: "adapter_config.json" in names and "config.json" not in names,
        "an adapter of peft",
    ),
    (_is_model, "a model"),
    (lambda _, names: "model_index.json" in names, "a pipeline of diffusers"),
    (_is_processor, "a tokenizer or processor without a model"),
    (_is_weights, "weights without a config.json"),
)
"""Folders that hold no rows but in tables, in the order in which they are recognised."""


def _is_table(name: str) -> bool:
    """Whether a file holds rows whatever lies beside it: nothing else writes Parquet."""
    return name.lower().endswith(".parquet")


def _holds_rows(name: str) -> bool:
    is_json = name.endswith(".json") and name not in MODEL_FILES
    return is_json or name.lower().endswith(_ROWS)


def _words(names: Collection[str]) -> str:
    """Say what a folder holds that may hold rows."""
    if not names:
        return "an empty folder"
    if "dataset_dict.json" in names or {"state.json", "dataset_info.json"} <= set(names):
        return "a dataset that save_to_disk wrote"
    rows = sorted(filter(_holds_rows, names))
    if rows:
        return f"data ({_listed(rows)})"
    if all(name.lower().endswith(_PICTURES) for name in names):
        return "pictures alone"
    return _listed(sorted(names))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")
