"""Changing texts that spell control tokens, so that they are plain text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from vlsi_cache.data.conversation import Conversation, Message, TextPart
from vlsi_cache.data.encoding.notices import Notices
from vlsi_cache.data.encoding.rendering.text import any_of
from vlsi_cache.data.encoding.tally import ChangedSamples

__all__ = ["Sanitizer"]

_ANSWERS_FIELDS = ("reasoning_content",)


class Sanitizer:
    """Keeps texts from writing end-of-turn tokens or image placeholders.

    A control token spelt out in a text gets a space after its first character: ``< image>``.
    Otherwise the tokenizer would take it for the token itself, and a turn would end early or an
    image would be missing. transformers can encode such spellings exactly, as plain text. But then
    it gives no offsets, which the response mask needs.

    Args:
        control_tokens: tokens that no text may spell.
        answer_tokens: those of them that the assistant's own texts may spell, because the template
            writes them there, too: before a call of a tool, or around a thought.
        changed: the count of changed samples.
        notices: warns of the first of them.
    """

    def __init__(
        self,
        control_tokens: frozenset[str],
        answer_tokens: frozenset[str],
        changed: Tensor,
        notices: Notices,
    ) -> None:
        self._in_prompts = any_of(control_tokens)
        self._in_answers = any_of(control_tokens - answer_tokens)
        self._changed = changed
        self._notices = notices

    def __call__(self, conversation: Conversation, *, where: str) -> Conversation:
        """The conversation with harmless texts. One without control tokens stays as it is."""
        found: set[str] = set()
        messages = tuple(self._message(message, found) for message in conversation.messages)
        tools = self._value(conversation.tools, self._in_prompts, found)
        if not found:
            return conversation
        ChangedSamples.note(self._changed, where)
        self._notices.warn(
            "control token",
            "%s: a text spells the control token %s; a space is put into it",
            where,
            ", ".join(sorted(found)),
        )
        return replace(conversation, messages=messages, tools=tools)

    def _message(self, message: Message, found: set[str]) -> Message:
        is_answer = message.role == "assistant"
        own = self._in_answers if is_answer else self._in_prompts
        parts = tuple(
            TextPart(self._text(part.text, own, found)) if isinstance(part, TextPart) else part
            for part in message.parts
        )
        fields = {
            name: self._value(value, own if name in _ANSWERS_FIELDS else self._in_prompts, found)
            for name, value in message.fields.items()
        }
        return replace(message, parts=parts, fields=fields)

    def _value(self, value: Any, pattern: re.Pattern[str], found: set[str]) -> Any:
        """A JSON value with harmless texts in it."""
        if isinstance(value, str):
            return self._text(value, pattern, found)
        if isinstance(value, Mapping):
            return {
                self._text(key, pattern, found): self._value(inner, pattern, found)
                for key, inner in value.items()
            }
        if isinstance(value, (list, tuple)):
            return type(value)(self._value(inner, pattern, found) for inner in value)
        return value

    def _text(self, text: str, pattern: re.Pattern[str], found: set[str]) -> str:
        # Breaking one token can leave a shorter one inside it. Each round breaks one for good.
        while spelt := pattern.findall(text):
            found.update(spelt)
            text = pattern.sub(_broken, text)
        return text


def _broken(found: re.Match[str]) -> str:
    token = found.group()
    return f"{token[0]} {token[1:]}"
