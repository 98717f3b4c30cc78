"""What the files of a model's folder say against the way in which it is loaded."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedConfig

from vlsi_cache.errors import ModelError

__all__ = ["validate_stored", "warn_of_two_copies", "warn_of_unread_code"]

logger = logging.getLogger(__name__)

_REMOTE = "transformers_modules."
_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def validate_stored(
    folder: Path, name: str, config: PreTrainedConfig, unread: Collection[str]
) -> None:
    """Refuse quantised weights whose configuration names no quantisation.

    transformers would take the small numbers for the weights themselves.

    Args:
        folder: where the weights lie.
        name: the model, as the user named it.
        config: the model's configuration.
        unread: keys of the checkpoint that the model does not have.

    Raises:
        ModelError: weights are whole numbers, or FP8 beside scales that nothing reads.
    """
    if getattr(config, "quantization_config", None) is not None:
        return
    has_scales = any("scale" in key for key in unread)
    for key, dtype in _weights(folder):
        if dtype.startswith(("I", "U")) or (dtype.startswith("F8") and has_scales):
            raise ModelError(
                "the weights are quantised, and config.json names no quantization_config",
                where=name,
                found=f"{key} of dtype {dtype}",
                mend="Copy the checkpoint's own config.json again, or give the unquantised model",
            )


def warn_of_two_copies(folder: Path, name: str) -> None:
    """Warn of weights that are there whole and in shards. transformers reads the whole file."""
    if (folder / _WHOLE).is_file() and (folder / _INDEX).is_file():
        logger.warning("%s: %s is read, and the shards of %s are not", name, _WHOLE, _INDEX)


def warn_of_unread_code(config: PreTrainedConfig, name: str) -> None:
    """Warn of code in the model's folder that is not run, because transformers has its own."""
    code: Any = getattr(config, "auto_map", None) or {}
    if code and not type(config).__module__.startswith(_REMOTE):
        logger.warning(
            "%s: the folder's own code (%s) is not run; transformers' %s is read with its own. "
            "trust_remote_code: true runs it",
            name,
            ", ".join(sorted({str(value) for value in code.values()})),
            config.model_type,
        )


def _weights(folder: Path) -> Iterator[tuple[str, str]]:
    """Key and dtype of each weight, from the headers alone."""
    for file in _files(folder):
        with safe_open(folder / file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (it is not a mapping)
                if key.endswith("weight"):
                    yield key, tensors.get_slice(key).get_dtype()


def _files(folder: Path) -> list[str]:
    """Names of the files that transformers read. The index names shards, which may have any."""
    index = folder / _INDEX
    if (folder / _WHOLE).is_file() or not index.is_file():
        return [_WHOLE] if (folder / _WHOLE).is_file() else []
    return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
