"""The files that hold a model's weights, as far as their headers show."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig

from vlsi_cache.contents import find_contents, find_link
from vlsi_cache.errors import ModelError, counted, first_line
from vlsi_cache.models.loading.smallfiles import read_object

__all__ = [
    "INDEX",
    "WHOLE",
    "StoredWeight",
    "find_weight_files",
    "has_weights",
    "is_readable",
    "read_headers",
]

WHOLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
_OTHERS: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.pkl")
"""Weights in forms that are not opened."""
_LENGTH_BYTES: Final = 8
_AGAIN: Final = "Copy or download it again"


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """One tensor of a checkpoint, as a header describes it."""

    dtype: str
    """Its dtype, in the words of safetensors."""
    shape: tuple[int, ...]
    """Its shape."""
    file: str
    """Name of the file that holds it."""


def has_weights(folder: Path) -> bool:
    """Report whether there are weights in a folder, of whatever kind."""
    return any(any(folder.glob(pattern)) for pattern in ("*.safetensors", INDEX, *_OTHERS))


def is_readable(folder: Path) -> bool:
    """Report whether a folder holds weights that transformers reads."""
    return (folder / WHOLE).is_file() or (folder / INDEX).is_file()


def find_weight_files(folder: Path, name: str, config: PreTrainedConfig) -> list[Path]:
    """Find the files that transformers reads: the whole one, or the shards that the index names.

    Args:
        folder: the folder.
        name: the model, for errors.
        config: its configuration, which may name a file.

    Raises:
        ModelError: there are none, or not all of them. The index cannot be read.
    """
    named = getattr(config, "transformers_weights", None)
    if named is not None and not str(named).endswith(".json"):
        return [folder / str(named)]
    whole, index = folder / WHOLE, folder / INDEX
    if whole.exists() or whole.is_symlink():
        return [whole]
    if index.exists():
        return _shards(folder, name)
    raise _no_weights(folder, name)


def read_headers(files: list[Path]) -> dict[str, StoredWeight]:
    """Read the names and shapes of all tensors in files, whose headers must be sound.

    Raises:
        ModelError: a file is damaged, or holds something else.
    """
    found: dict[str, StoredWeight] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 (it is not a mapping)
                    part = tensors.get_slice(key)
                    shape = tuple(part.get_shape())
                    found[key] = StoredWeight(part.get_dtype(), shape, path.name)
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error
    return found


def _shards(folder: Path, name: str) -> list[Path]:
    index = folder / INDEX
    found = read_object(index)
    named = found.get("weight_map")
    if not isinstance(named, Mapping) or not all(isinstance(one, str) for one in named.values()):
        raise ModelError(
            "the index of the weights names no files",
            where=index,
            expected="weight_map, an object with a file for each weight",
            mend=_AGAIN,
        )
    if not isinstance(found.get("metadata"), Mapping):  # transformers reads it in any case
        raise ModelError(
            "the index of the weights has no metadata",
            where=index,
            expected='"metadata": {} beside weight_map',
            mend=f"{_AGAIN}, or write it into the file",
        )
    names = sorted(set(named.values()))
    missing = [shard for shard in names if not (folder / shard).exists()]
    if missing or not names:
        raise ModelError(
            f"{counted(len(missing), 'shard')} of the weights "
            f"{'is' if len(missing) == 1 else 'are'} missing",
            where=name,
            expected=f"the {len(names):,} files that {INDEX} names",
            found="no " + ", ".join(missing[:3]) + (" …" if len(missing) > 3 else ""),
            mend="Copy or download them again",
        )
    return [folder / shard for shard in names]


def _no_weights(folder: Path, name: str) -> ModelError:
    single = sorted(path.name for path in folder.glob("*.safetensors"))
    others = sorted(path.name for pattern in _OTHERS for path in folder.glob(pattern))
    found = single or others
    shown = ", ".join(found[:3]) + (" …" if len(found) > 3 else "")
    if single:
        return ModelError(
            "the folder's weights have names that transformers does not read",
            where=name,
            expected=f"{WHOLE}, or shards with {INDEX}",
            found=shown,
            mend="Copy the index too, or save the model with save_pretrained",
        )
    return ModelError(
        "the folder holds no safetensors weights, and pickled ones are not opened",
        where=name,
        expected=f"{WHOLE}, or shards of it",
        found=shown or None,
        mend="Save the model with save_pretrained",
    )


def _damaged(path: Path, error: Exception) -> ModelError:
    """Return the error of a file that safetensors refuse."""
    link = find_link(path)
    if link is not None:
        return ModelError("the file cannot be read", where=path, found=link, mend=_AGAIN)
    try:
        contents = find_contents(path)
        length = _find_length(path)
        size = path.stat().st_size
    except OSError as refused:
        return ModelError("the file cannot be read", where=path, found=refused.strerror)
    if length is None and contents.words != "safetensors" and contents.kind != "binary":
        return ModelError(
            f"the file is not safetensors, but {contents.words}", where=path, mend=contents.mend
        )
    if length is None or length == size:
        return ModelError("the file is damaged", where=path, found=first_line(error), mend=_AGAIN)
    return ModelError(
        "the file is cut off" if size < length else "the file is longer than its header says",
        where=path,
        expected=f"{length:,} bytes",
        found=f"{size:,}",
        mend=_AGAIN,
    )


def _find_length(path: Path) -> int | None:
    """Find how many bytes a file's header promises. None if it is no such header."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if not 0 < length <= size - _LENGTH_BYTES:
            return None
        try:
            header: Any = json.loads(file.read(length))
            ends = [
                part["data_offsets"][1] for key, part in header.items() if key != "__metadata__"
            ]
            return int(_LENGTH_BYTES + length + max(ends, default=0))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return None
