"""Whether a model's files are those of a model that can be loaded. Weights are not read."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig

from vlsi_cache.errors import ModelError, counted, first_line
from vlsi_cache.models.loading.loading import loader_of
from vlsi_cache.models.loading.sources import base_of, find_folder, validate_safetensors
from vlsi_cache.recipe import ModelSection

__all__ = ["validate_model_files"]

logger = logging.getLogger(__name__)

_WHOLE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_WEIGHTS: Final = ("*.safetensors", "pytorch_model*.bin")


def validate_model_files(section: ModelSection, config: PreTrainedConfig) -> None:
    """Refuse another kind of model, and weights that are pickled, missing in part or cut off.

    A folder without any weights passes with a warning: data can be checked where weights are not.

    Args:
        section: the recipe's ``teacher`` or ``student``.
        config: the model's configuration.

    Raises:
        ModelError: the model cannot be loaded.
    """
    name, revision = base_of(section.model or "", section.revision)
    loader_of(config, name)
    folder = find_folder(name, revision)
    if folder is None or not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
        if Path(name).is_dir():  # those of a name on the hub are downloaded
            logger.warning("%s holds no weights. A run would need them, this check does not", name)
        return
    validate_safetensors(folder, name)
    files = [folder / _WHOLE]
    if not files[0].is_file() and (folder / _INDEX).is_file():
        files = _shards(folder, name)
    for path in files:
        if path.is_file() or path.is_symlink():
            _validate_header(path, name)


def _shards(folder: Path, name: str) -> list[Path]:
    """The shards that the index names."""
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        names = sorted(set(index["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            "the index of the weights cannot be read",
            where=folder / _INDEX,
            found=first_line(error),
            mend="Copy or download it again",
        ) from error
    missing = [shard for shard in names if not (folder / shard).is_file()]
    if missing:
        raise ModelError(
            f"{counted(len(missing), 'shard')} of the weights "
            f"{'is' if len(missing) == 1 else 'are'} missing",
            where=name,
            expected=f"the {len(names):,} files that {_INDEX} names",
            found="no " + ", ".join(missing[:3]) + (" …" if len(missing) > 3 else ""),
            mend="Copy or download them again",
        )
    return [folder / shard for shard in names]


def _validate_header(path: Path, name: str) -> None:
    """Refuse a file that is cut off, or is none of safetensors. Its header says its length."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path.name} is damaged",
            where=name,
            found=first_line(error),
            mend="Copy or download it again",
        ) from error
