"""From spans of characters to the tokens inside them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlsi_cache.data.encoding.rendering.text import Span

__all__ = ["blanks_beside", "shifted", "tokens_in_spans"]

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Ints = np.ndarray[Any, np.dtype[np.int64]]


def shifted(spans: Sequence[Span], replacements: Sequence[Mapping[str, Any]]) -> list[Span]:
    """Shift the spans of a text to where they are after its image placeholders are expanded.

    Args:
        spans: spans in the text before. None begins or ends inside a placeholder.
        replacements: a processor's ``text_replacement_offsets`` of one text, in order: ``span``
            of a placeholder before, ``new_span`` after.
    """
    ends = [replacement["span"][1] for replacement in replacements]
    gains = [0] + [
        replacement["new_span"][1] - replacement["span"][1] for replacement in replacements
    ]
    return [
        (start + gains[bisect_right(ends, start)], end + gains[bisect_right(ends, end)])
        for start, end in spans
    ]


def blanks_beside(text: str, span: Span) -> tuple[int, int]:
    """Numbers of white-space characters before a span and after it."""
    front, rest = text[: span[0]], text[span[1] :]
    return len(front) - len(front.rstrip()), len(rest) - len(rest.lstrip())


def tokens_in_spans(
    spans: Sequence[Span], blanks: Sequence[tuple[int, int]], offsets: Ints
) -> Bools:
    """Find the tokens that belong to the spans.

    A token belongs to a span that it overlaps, as in transformers' assistant mask. One exception is
    a token that reaches out of the span with more than white space, because it spells the text
    beside it. (LLaVA's template ends an answer with a space, and the next token is ``▁USER``. Phi
    3's ``<|assistant|>`` takes the spaces of the answer after it.) White space that a tokenizer
    trims from its offsets has no width, and belongs to the span around it.

    Args:
        spans: spans of characters, ascending.
        blanks: white-space characters before and after each span.
        offsets: ``[T, 2]`` first character and one past the last of each token. Padding and added
            special tokens have ``(0, 0)``.

    Returns:
        ``[T]`` bool.
    """
    firsts = offsets[:, 0]
    lasts = offsets[:, 1]
    inside: Bools = np.zeros(len(offsets), dtype=np.bool_)
    for (start, end), (before, after) in zip(spans, blanks, strict=True):
        within = (firsts >= start - before) & (lasts <= end + after)
        inside |= within & (firsts < end) & (lasts > start)
    return inside
