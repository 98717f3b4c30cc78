"""Where, in the rendered text of a conversation, the assistant's responses are.

A response is what the model has to generate: all that follows the generation prompt, up to and
including the end-of-turn token. Templates with ``{% generation %}`` tags say it themselves; their
spans are kept, and the end-of-turn token is added where the tags leave it out, since a model that
never learns it never stops.

For the others the conversation is rendered a second time with a unique private-use character on
either side of each answer's words. They come out where the words come out, whatever the template
trims, merges or moves; without them the second text must equal the first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vlsi_cache.data.conversation import Message, TextPart
from vlsi_cache.data.encoding.template import ChatTemplate, Span
from vlsi_cache.errors import DataError

__all__ = ["RenderedConversation", "ResponseFinder"]

_PRIVATE_USE = range(0x100000, 0x10FFFE)


@dataclass(frozen=True, slots=True)
class RenderedConversation:
    """A conversation as the template's text."""

    text: str
    """The whole text, images as their placeholders."""
    responses: tuple[Span, ...]
    """Characters of the assistant's responses, in order, end-of-turn tokens included."""


class ResponseFinder:
    """Renders conversations and finds the responses in them.

    Args:
        template: the chat template.
        special: pattern of the tokenizer's special tokens.
    """

    def __init__(self, template: ChatTemplate, special: re.Pattern[str]) -> None:
        self._template = template
        self._special = special

    def __call__(self, messages: Sequence[Message], *, where: str) -> RenderedConversation:
        """Render ``messages``, the last of which is the assistant's.

        Raises:
            DataError: the template refuses the conversation, rewrites the answers beyond
                recognition or leaves them out.
        """
        text, tagged = self._template.render(messages, where=where)
        spans = tagged if self._template.has_tags else self._untagged(messages, text, where)
        spans = [(start, end) for start, end in spans if start < end]
        if not spans:
            raise DataError(
                "chat template leaves the answers out",
                where=where,
                mend="Check the template's treatment of the assistant's turns",
            )
        closing = self._closing(text[spans[-1][1] :])
        return RenderedConversation(text, tuple(_closed(text, span, closing) for span in spans))

    def _closing(self, rest: str) -> re.Pattern[str]:
        """Pattern of what ends a turn, from the text after the last answer."""
        found = re.compile(rf"\s*({self._special.pattern})").match(rest)
        # A template may end turns by text that is no token of its own, or not at all.
        ending = found.group(1) if found else rest.strip()
        return re.compile(rf"\s*{re.escape(ending)}" if ending else "")

    def _untagged(self, messages: Sequence[Message], text: str, where: str) -> list[Span]:
        used = set(text)
        free = (chr(code) for code in _PRIVATE_USE if chr(code) not in used)
        marks = {
            index: (next(free), next(free))
            for index, message in enumerate(messages)
            if message.role == "assistant"
        }
        marked = [
            _marked(message, *marks[index]) if index in marks else message
            for index, message in enumerate(messages)
        ]
        places = self._places(marked, marks, text, where)
        spans: list[Span] = []
        previous_end = 0
        for index, (opening, closing) in marks.items():
            if closing not in places:
                continue  # the template drops this turn
            end = places[closing]
            start = places.get(opening)
            if start is None:
                start = self._start_by_prefix(messages[:index], text, end, where)
            else:
                start = self._start_by_header(text, previous_end, start)
            spans.append((start, end))
            previous_end = end
        return spans

    def _places(
        self,
        marked: Sequence[Message],
        marks: dict[int, tuple[str, str]],
        text: str,
        where: str,
    ) -> dict[str, int]:
        """Offset in ``text`` of every mark that the template let through."""
        rendered, _ = self._template.render(marked, where=where)
        all_marks = {mark for pair in marks.values() for mark in pair}
        pieces = re.split(f"([{''.join(sorted(all_marks))}])", rendered)
        places: dict[str, int] = {}
        length = 0
        for piece in pieces:
            if piece not in all_marks:
                length += len(piece)
            elif piece in places:
                raise self._unrecognizable(where)
            else:
                places[piece] = length
        if "".join(piece for piece in pieces if piece not in all_marks) != text:
            raise self._unrecognizable(where)
        return places

    def _start_by_header(self, text: str, previous_end: int, start: int) -> int:
        """End of the generation prompt before an answer, which may be followed by more than words.

        Qwen3 writes an empty thought there, Llama 2 a space: both are the model's to generate.
        """
        prompt = self._template.generation_prompt
        before = text[previous_end:start]
        if not prompt:
            return previous_end + len(before.rstrip(" "))
        found = before.rfind(prompt)
        return start if found < 0 else previous_end + found + len(prompt)

    def _start_by_prefix(self, history: Sequence[Message], text: str, end: int, where: str) -> int:
        """Length of the prompt that the model would be given; for answers rewritten at the front.

        Templates that cut the thoughts off earlier answers, or lay them out anew, do so.
        """
        prompt, _ = self._template.render(history, where=where, add_generation_prompt=True)
        if not text.startswith(prompt) or len(prompt) > end:
            raise self._unrecognizable(where)
        return len(prompt)

    def _unrecognizable(self, where: str) -> DataError:
        return DataError(
            "chat template rewrites the answers, so that they cannot be found in its text",
            where=where,
            found=self._template.name,
            mend="Mark the answers in the template with {% generation %} … {% endgeneration %}",
        )


def _closed(text: str, span: Span, closing: re.Pattern[str]) -> Span:
    found = closing.match(text, span[1])
    return span if found is None else (span[0], found.end())


def _marked(message: Message, opening: str, closing: str) -> Message:
    """The message with marks around its words, inside of the white space that templates trim."""
    texts = [part.text for part in message.parts if isinstance(part, TextPart)]
    filled = [index for index, text in enumerate(texts) if text.strip()]
    first, last = filled[0], filled[-1]
    head = len(texts[first]) - len(texts[first].lstrip())
    texts[first] = texts[first][:head] + opening + texts[first][head:]
    tail = len(texts[last].rstrip())
    texts[last] = texts[last][:tail] + closing + texts[last][tail:]
    return Message(message.role, tuple(TextPart(text) for text in texts))
