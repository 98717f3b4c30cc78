"""Marks: private-use characters beside the words of a conversation, that show where they went.

A template trims, merges, moves and drops what it is given. Marks stay beside the words. Without
them, the text with marks must equal the text without.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vlsi_cache.data.conversation import Conversation, ImagePart, Message, TextPart

__all__ = ["MarkedConversation", "Marks", "mark_conversation", "offsets_of"]

_PRIVATE_USE = range(0x100000, 0x10FFFE)


@dataclass(slots=True)
class Marks:
    """The marks of one turn. An empty one stands for words that the turn does not have."""

    opening: str = ""
    """Before the words of an assistant's content."""
    closing: str = ""
    """After them."""
    thought: str = ""
    """Inside ``reasoning_content``."""
    calls: list[str] = field(default_factory=list)
    """Inside the name of each called function."""
    name: str = ""
    """Inside ``name``."""
    words: str = ""
    """Inside the content of a turn that is not the assistant's."""

    def answer(self) -> list[str]:
        """Marks of all that an assistant's turn says."""
        found = [self.opening, self.closing, self.thought, *self.calls]
        return [mark for mark in found if mark]

    def all(self) -> list[str]:
        """All marks of the turn."""
        return [mark for mark in (*self.answer(), self.name, self.words) if mark]


@dataclass(frozen=True, slots=True)
class MarkedConversation:
    """A conversation with marks in it."""

    conversation: Conversation
    """The conversation."""
    turns: tuple[Marks, ...]
    """The marks of each message."""
    all: frozenset[str]
    """All marks."""


def mark_conversation(
    conversation: Conversation, text: str, *, answers_only: bool
) -> MarkedConversation:
    """Mark a conversation.

    Args:
        conversation: the conversation.
        text: its rendered text, which holds none of the marks.
        answers_only: mark what the assistant says, and nothing else.
    """
    used = set(text)
    marker = _Marker(chr(code) for code in _PRIVATE_USE if chr(code) not in used)
    pairs = [(message, Marks()) for message in conversation.messages]
    for answers in (True, False)[: 1 if answers_only else 2]:
        for index, message in enumerate(conversation.messages):
            if answers == (message.role == "assistant"):
                pairs[index] = marker.mark(message, with_name=not answers_only)
    return MarkedConversation(
        replace(conversation, messages=tuple(message for message, _ in pairs)),
        tuple(marks for _, marks in pairs),
        frozenset(mark for _, marks in pairs for mark in marks.all()),
    )


def offsets_of(marked: MarkedConversation, rendered: str) -> tuple[str, dict[str, list[int]]]:
    """The text without its marks, and where in it each mark that the template kept stands."""
    pieces = re.split(f"([{''.join(sorted(marked.all)) or chr(_PRIVATE_USE[-1])}])", rendered)
    offsets: dict[str, list[int]] = {}
    length = 0
    for piece in pieces:
        if piece in marked.all:
            offsets.setdefault(piece, []).append(length)
        else:
            length += len(piece)
    return "".join(piece for piece in pieces if piece not in marked.all), offsets


class _Marker:
    """Marks messages with characters that are free."""

    def __init__(self, free: Iterator[str]) -> None:
        self._free = free

    def mark(self, message: Message, *, with_name: bool) -> tuple[Message, Marks]:
        """The message with marks in it, and these marks."""
        marks = Marks()
        fields = dict(message.fields)
        parts = message.parts
        if message.role != "assistant":
            parts, marks.words = self._inside_parts(message.parts)
        elif message.text.strip():
            marks.opening, marks.closing = next(self._free), next(self._free)
            parts = _around(message.parts, marks.opening, marks.closing)
        thought = fields.get("reasoning_content")
        if isinstance(thought, str) and thought.strip():
            marks.thought, fields["reasoning_content"] = self._inside(thought)
        if fields.get("tool_calls"):
            fields["tool_calls"] = [self._call(call, marks) for call in fields["tool_calls"]]
        if with_name and isinstance(fields.get("name"), str) and fields["name"].strip():
            marks.name, fields["name"] = self._inside(fields["name"])
        return replace(message, parts=parts, fields=fields), marks

    def _call(self, call: Any, marks: Marks) -> Any:
        mark, name = self._inside(call["function"]["name"])
        marks.calls.append(mark)
        return {**call, "function": {**call["function"], "name": name}}

    def _inside(self, text: str) -> tuple[str, str]:
        """A mark, and the text with it in the middle of its words.

        In the middle, because templates look at beginnings and ends: ``<tool_response>``.
        """
        mark = next(self._free)
        head = len(text) - len(text.lstrip())
        middle = (head + len(text.rstrip())) // 2
        return mark, text[:middle] + mark + text[middle:]

    def _inside_parts(
        self, parts: Sequence[TextPart | ImagePart]
    ) -> tuple[tuple[TextPart | ImagePart, ...], str]:
        """Only the longest text is marked: it has room for a mark away from its ends."""
        texts = [
            (len(part.text.strip()), index)
            for index, part in enumerate(parts)
            if isinstance(part, TextPart)
        ]
        length, longest = max(texts, default=(0, 0))
        if not length:
            return tuple(parts), ""
        part = parts[longest]
        mark, text = self._inside(part.text if isinstance(part, TextPart) else "")
        return (*parts[:longest], TextPart(text), *parts[longest + 1 :]), mark


def _around(
    parts: Sequence[TextPart | ImagePart], opening: str, closing: str
) -> tuple[TextPart | ImagePart, ...]:
    """The parts with marks around their words, inside the white space that templates trim."""
    texts = [part.text if isinstance(part, TextPart) else "" for part in parts]
    filled = [index for index, text in enumerate(texts) if text.strip()]
    first = filled[0]
    last = filled[-1]
    head = len(texts[first]) - len(texts[first].lstrip())
    texts[first] = texts[first][:head] + opening + texts[first][head:]
    tail = len(texts[last].rstrip())
    texts[last] = texts[last][:tail] + closing + texts[last][tail:]
    return tuple(
        TextPart(text) if isinstance(part, TextPart) else part
        for part, text in zip(parts, texts, strict=True)
    )
