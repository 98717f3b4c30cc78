"""One batch of two: rows that were encoded apart, put together in their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["interleave"]


def interleave(
    encoded: Sequence[tuple[Sequence[int], dict[str, Any]]], *, pad_token_id: int
) -> dict[str, Any]:
    """Put the outputs of several calls of a processor together.

    Args:
        encoded: the rows of the batch that each call encoded, and its output.
        pad_token_id: fills the shorter ones.

    Returns:
        One output. Pixels are those of the calls, one after the other, so that at most one call may
        have images.
    """
    if len(encoded) == 1:
        return encoded[0][1]
    length = max(len(found["input_ids"][0]) for _, found in encoded)
    num_rows = sum(len(rows) for rows, _ in encoded)
    merged: dict[str, Any] = {}
    for rows, found in encoded:
        for name, value in found.items():
            if name == "text_replacement_offsets":
                own = merged.setdefault(name, [[] for _ in range(num_rows)])
                for row, replacements in zip(rows, value, strict=True):
                    own[row] = replacements
            elif _is_per_token(value, found["input_ids"]):
                values = np.asarray(value)
                fill = pad_token_id if name == "input_ids" else 0
                shape = (num_rows, length, *values.shape[2:])
                own = merged.setdefault(name, np.full(shape, fill, values.dtype))
                own[np.asarray(rows), : values.shape[1]] = values
            else:
                merged[name] = value
    return merged


def _is_per_token(value: Any, input_ids: Any) -> bool:
    values = np.asarray(value)
    return values.shape[:2] == np.asarray(input_ids).shape and values.dtype.kind in "iub"
