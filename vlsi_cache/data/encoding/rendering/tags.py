"""Where a template's ``{% generation %}`` tags stand in the text that it writes.

transformers counts the characters that are written before a tag. Inside a macro it cannot know
them. So marks are written inside the tags, and are taken out of the text again.
"""

from __future__ import annotations

import re
from typing import Final

from vlsi_cache.data.encoding.rendering.text import Span

__all__ = ["has_tags", "spans_of_marks", "with_marks"]

# Noncharacters, which no text holds.
_BEGIN: Final = "\U0010fffe"
_END: Final = "\U0010ffff"
_OPENING = re.compile(r"(\{%[-+]?\s*generation\s*)(?:-%\}\s*|\+%\}|%\}\n?)")
_CLOSING = re.compile(r"(?:\s*\{%-|\{%\+|(?:(?<=\n)[ \t]*)?\{%)(\s*endgeneration\s*[-+]?%\})")


def has_tags(source: str) -> bool:
    """Whether a template marks the assistant's text."""
    return _OPENING.search(source) is not None


def with_marks(source: str) -> str:
    """The template, with a mark written at the beginning and at the end of each tag.

    White space that a tag would take away beside it is taken away here.
    """
    source = _CLOSING.sub(rf"{{{{ '{_END}' }}}}{{%\1", source)
    return _OPENING.sub(rf"\1%}}{{{{ '{_BEGIN}' }}}}", source)


def spans_of_marks(marked: str, text: str) -> list[Span] | None:
    """The spans between the marks. None if the marks change the text, or do not form pairs.

    Args:
        marked: the text that the template with marks writes.
        text: the text that it writes without.
    """
    spans = []
    length = 0
    begin = None
    for piece in re.split(f"([{_BEGIN}{_END}])", marked):
        if piece == _BEGIN and begin is None:
            begin = length
        elif piece == _END and begin is not None:
            spans.append((begin, length))
            begin = None
        elif piece in (_BEGIN, _END) or not text.startswith(piece, length):
            return None
        else:
            length += len(piece)
    return spans if length == len(text) and begin is None else None
