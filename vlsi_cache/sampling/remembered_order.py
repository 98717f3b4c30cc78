"""The order of a vocabulary, computed once for a head and kept in a file."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlsi_cache.files import share_weights
from vlsi_cache.phases import phase
from vlsi_cache.sampling.vocabulary_order import vocabulary_order

__all__ = ["ORDER_FILE", "remembered_order"]

logger = logging.getLogger(__name__)

ORDER_FILE: Final = ".vocabulary-order.safetensors"
_HEAD: Final = "head"
_ORDER: Final = "order"
_ROWS: Final = 4096
"""Rows that are copied at once to be hashed."""


def remembered_order(weight: Tensor, folder: Path) -> Tensor:
    """Return ``vocabulary_order`` of a head, from a file in the folder if it holds this head's.

    A file that is damaged, or of another head, is written again. Without a writable folder the
    order is computed every time.

    Args:
        weight: [V, D], the head's rows.
        folder: where the file is kept.
    """
    path = folder / ORDER_FILE
    with phase(f"ordering the vocabulary ({len(weight):,} tokens)"):
        head = _fingerprint(weight)
        order = _read(path, head, len(weight))
        if order is not None:
            return order.to(weight.device)
        order = vocabulary_order(weight)
        _write(path, head, order.cpu())
    return order


def _fingerprint(weight: Tensor) -> str:
    # Devices round differently, and so give different orders.
    digest = hashlib.sha256(f"{weight.device.type} {weight.dtype} {tuple(weight.shape)}".encode())
    for rows in weight.detach().split(_ROWS):
        digest.update(rows.cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _read(path: Path, head: str, num_rows: int) -> Tensor | None:
    """Return the order that a file holds, if it is whole and this head's."""
    try:
        with safe_open(path, framework="pt") as file:
            found = file.metadata() or {}
            order: Tensor = file.get_tensor(_ORDER)
    except (OSError, SafetensorError):
        return None
    is_whole = found.get(_HEAD) == head and found.get(_ORDER) == _digest(order)
    return order if is_whole and order.shape == (num_rows,) else None


def _write(path: Path, head: str, order: Tensor) -> None:
    # Jobs of an array may write at once, and each its own file.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({_ORDER: order}, partial, metadata={_HEAD: head, _ORDER: _digest(order)})
        share_weights(partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        logger.warning("%s: the order of the vocabulary is not kept (%s)", path, error)
        with contextlib.suppress(OSError):
            partial.unlink()


def _digest(order: Tensor) -> str:
    return hashlib.sha256(order.numpy().tobytes()).hexdigest()
