"""A bound on the padded tokens of one forward pass, and the pieces of a batch that keep it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

__all__ = ["collate_pieces", "cut_rows", "padded_tokens", "row_lengths"]

T = TypeVar("T")


def cut_rows(lengths: Sequence[int], most_tokens: int) -> list[list[int]]:
    """Divide rows so that each piece, padded to its longest row, has at most so many tokens.

    Rows of like length share a piece. A row that is longer than the bound is alone.

    Args:
        lengths: tokens of each row.
        most_tokens: the bound.

    Returns:
        The rows of each piece, ascending.
    """
    pieces: list[list[int]] = []
    width = 0
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if not pieces or (len(pieces[-1]) + 1) * width > most_tokens:
            pieces.append([])
            width = lengths[row]  # the longest of its piece, because rows come longest first
        pieces[-1].append(row)
    return [sorted(piece) for piece in pieces]


def padded_tokens(batch: Mapping[str, Any]) -> int:
    """Count the tokens of a batch of ``TokenBatches``, padding included."""
    return int(batch["inputs"]["input_ids"].numel())


def row_lengths(batch: Mapping[str, Any]) -> list[int]:
    """Count the tokens of each row, without the padding that the longest row spares it.

    A processor may pad the longest row too. All rows count that padding.
    """
    attention: Tensor = batch["inputs"]["attention_mask"]
    lengths = attention.sum(1)
    return (lengths + attention.shape[1] - lengths.max()).tolist()


def collate_pieces(
    collate: Callable[[list[T]], dict[str, Any]], items: list[T], most_tokens: int | None
) -> list[tuple[list[int], dict[str, Any]]]:
    """Collate items into one batch, or into several where one would be beyond the bound.

    The processor alone knows how many tokens an image takes and how its pixels lie. So a batch that
    turns out too large is collated again, piece by piece.

    Args:
        collate: items → a batch of ``TokenBatches``.
        items: the items.
        most_tokens: most padded tokens of a batch; None for no bound.

    Returns:
        Positions of each piece's items, and its batch.
    """
    batch = collate(items)
    if most_tokens is None or len(items) == 1 or padded_tokens(batch) <= most_tokens:
        return [(list(range(len(items))), batch)]
    pieces = cut_rows(row_lengths(batch), most_tokens)
    return [(rows, collate([items[row] for row in rows])) for rows in pieces]
