"""Fields that nothing reads, whose names are close to one that is read."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Final

from vlsi_cache.data.reading.forms.forms import THOUGHT_COLUMN
from vlsi_cache.data.reading.forms.placing import is_named_after_images
from vlsi_cache.data.reading.forms.rows import KNOWN_COLUMNS
from vlsi_cache.data.reading.forms.turns import KNOWN_FIELDS, THOUGHT_FIELDS
from vlsi_cache.data.reading.forms.weights import MARKS

__all__ = ["with_near_miss"]

_VARIABLES: Final = ("enable_thinking", "documents")
"""Variables of well-known templates."""


def with_near_miss(name: str) -> str:
    """Return a field's name, with the known name that it may be a misspelling of.

    KTO's ``label`` has advice in its place, because a table may store it as 0. A column that is
    named after images may hold them, and one that is named like a turn's thought may hold one.
    Marks of what is learned are read in turns, and variables of a template in their own field.

    Args:
        name: the name of a column, or the path of a field such as ``messages[].weigth``.
    """
    if "." not in name and is_named_after_images(name):
        return f"{name} (perhaps images)"
    if name in THOUGHT_FIELDS:
        return f"{name} (perhaps {THOUGHT_COLUMN})" if name != THOUGHT_COLUMN else name
    if name in MARKS:
        return f"{name} (read in turns alone)"
    if name in _VARIABLES:
        return f"{name} (perhaps in chat_template_kwargs)"
    known = KNOWN_FIELDS if "." in name else KNOWN_COLUMNS
    own = name.rpartition(".")[2]
    close = get_close_matches(own, sorted(known), n=1, cutoff=0.8)
    if name == "label":
        return f"{name} (drop rows that it marks as bad answers)"
    return f"{name} (perhaps {close[0]})" if close and close[0] != own else name
