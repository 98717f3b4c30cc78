"""Heads that a configuration ties to the embedding, and that have values of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open

from vlsi_cache.errors import ModelError
from vlsi_cache.models.loading.weightfiles import StoredWeight

__all__ = ["ties_head", "validate_tied", "validate_tied_rows"]

_HEAD: Final = "lm_head.weight"
_ROWS: Final = (0, 1, 2, 3, 17, 100, 1000, 5000, 20000)
"""Rows in which a head is compared with the embedding. A head that was trained differs in all."""


def validate_tied(model: Any, name: str) -> None:
    """Refuse a loaded model whose head and embedding differ, while its configuration ties them.

    transformers would go on with a head of its own, which the saved config then denies.

    Raises:
        ModelError: they differ.
    """
    output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if not ties_head(model):
        return
    if output is not None and output.weight is not embedding.weight:
        raise _not_tied(name)


def ties_head(model: Any) -> bool:
    """Report whether a model ties its head to its embedding, as its configuration says."""
    tied = getattr(model, "_tied_weights_keys", None) or ()
    return bool(getattr(model.config, "tie_word_embeddings", False)) and _HEAD in tied


def validate_tied_rows(folder: Path, weights: Mapping[str, StoredWeight], name: str) -> None:
    """Refuse a stored head that differs from the embedding, for a model that ties the two.

    Args:
        folder: where the weights lie.
        weights: all weights in the headers of the checkpoint.
        name: the model, for errors.

    Raises:
        ModelError: they differ in one of a few rows.
    """
    embeddings = [key for key in weights if key.endswith("embed_tokens.weight")]
    heads = [key for key in weights if key == _HEAD or key.endswith(f".{_HEAD}")]
    if len(heads) != 1 or len(embeddings) != 1:
        return
    head, embedding = weights[heads[0]], weights[embeddings[0]]
    if head.shape != embedding.shape or head.dtype != embedding.dtype:
        return
    rows = [row for row in _ROWS if row < head.shape[0]]
    first = _rows(folder / head.file, heads[0], rows)
    if not torch.equal(first, _rows(folder / embedding.file, embeddings[0], rows)):
        raise _not_tied(name)


def _rows(path: Path, key: str, rows: list[int]) -> torch.Tensor:
    with safe_open(path, framework="pt") as tensors:
        part = tensors.get_slice(key)
        return torch.cat([part[row : row + 1].view(torch.uint8) for row in rows])


def _not_tied(name: str) -> ModelError:
    return ModelError(
        "the head and the embedding differ, while the configuration ties them",
        where=name,
        expected="one matrix for both",
        found=f"{_HEAD} with values of its own",
        mend="Set tie_word_embeddings: false in config.json, if the head was trained",
    )
