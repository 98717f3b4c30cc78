"""What the files of a model's folder say against the way in which it is loaded."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from vlsi_cache.errors import ModelError
from vlsi_cache.models.loading.kinds import has_own_code
from vlsi_cache.models.loading.weightfiles import INDEX, WHOLE, StoredWeight

__all__ = ["validate_stored", "warn_of_two_copies", "warn_of_unread_code"]

logger = logging.getLogger(__name__)


def validate_stored(
    weights: Mapping[str, StoredWeight],
    name: str,
    config: PreTrainedConfig,
    unread: Collection[str],
) -> None:
    """Refuse quantised weights whose configuration names no quantisation.

    transformers would take the small numbers for the weights themselves.

    Args:
        weights: all weights in the headers of the checkpoint.
        name: the model, as the user named it.
        config: the model's configuration.
        unread: keys of the checkpoint that the model does not have.

    Raises:
        ModelError: weights are whole numbers, or FP8 beside scales that nothing reads.
    """
    if getattr(config, "quantization_config", None) is not None:
        return
    has_scales = any("scale" in key for key in unread)
    for key, stored in weights.items():
        dtype = stored.dtype
        if not key.endswith("weight"):
            continue
        if dtype.startswith(("I", "U")) or (dtype.startswith("F8") and has_scales):
            raise ModelError(
                "the weights are quantised, and config.json names no quantization_config",
                where=name,
                found=f"{key} of dtype {dtype}",
                mend="Copy the checkpoint's own config.json again, or give the unquantised model",
            )


def warn_of_two_copies(folder: Path, name: str) -> None:
    """Warn of weights that are there whole and in shards. transformers reads the whole file."""
    if (folder / WHOLE).is_file() and (folder / INDEX).is_file():
        logger.warning("%s: %s is read, and the shards of %s are not", name, WHOLE, INDEX)


def warn_of_unread_code(config: PreTrainedConfig, name: str) -> None:
    """Warn of code in the model's folder that is not run, because transformers has its own."""
    code: Any = getattr(config, "auto_map", None) or {}
    if code and not has_own_code(config):
        logger.warning(
            "%s: the folder's own code (%s) is not run; transformers' %s is read with its own. "
            "trust_remote_code: true runs it",
            name,
            ", ".join(sorted({str(value) for value in code.values()})),
            config.model_type,
        )
