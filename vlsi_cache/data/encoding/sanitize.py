"""Changing texts that spell control tokens, so that they are plain text."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence

from vlsi_cache.data.conversation import ImagePart, Message, TextPart
from vlsi_cache.data.encoding.template import any_of

__all__ = ["Sanitizer"]

logger = logging.getLogger(__name__)


class Sanitizer:
    """Keeps texts from writing end-of-turn tokens or image placeholders.

    A control token spelt out in a text gets a space after its first character: ``< image>``.
    Otherwise the tokenizer would take it for the token itself, and a turn would end early or an
    image would be missing. transformers can encode such spellings exactly, as plain text. But then
    it gives no offsets, which the response mask needs.

    Args:
        control_tokens: tokens that no text may spell.
    """

    def __init__(self, control_tokens: Iterable[str]) -> None:
        self._pattern = any_of(control_tokens)
        self._has_warned = False

    def __call__(self, messages: Sequence[Message], *, where: str) -> tuple[Message, ...]:
        """The messages with harmless texts. Those without control tokens stay as they are."""
        found = {
            token
            for message in messages
            for part in message.parts
            if isinstance(part, TextPart)
            for token in self._pattern.findall(part.text)
        }
        if not found:
            return tuple(messages)
        # One warning, not one per sample and epoch.
        level = logging.DEBUG if self._has_warned else logging.WARNING
        self._has_warned = True
        logger.log(
            level,
            "%s: a text spells the control token %s; a space is put into it",
            where,
            ", ".join(sorted(found)),
        )
        return tuple(
            Message(message.role, tuple(self._part(part) for part in message.parts))
            for message in messages
        )

    def _part(self, part: TextPart | ImagePart) -> TextPart | ImagePart:
        return TextPart(self._text(part.text)) if isinstance(part, TextPart) else part

    def _text(self, text: str) -> str:
        # Breaking one token can leave a shorter one inside it. Each round breaks one for good.
        while self._pattern.search(text):
            text = self._pattern.sub(_broken, text)
        return text


def _broken(found: re.Match[str]) -> str:
    token = found.group()
    return f"{token[0]} {token[1:]}"
