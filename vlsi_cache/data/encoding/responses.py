"""The spans of the assistant's responses in the rendered text of a conversation.

A response is what the model has to generate: the text from the generation prompt to the end-of-turn
token, which is included. Templates with ``{% generation %}`` tags mark it themselves. The
end-of-turn token is added where the tags leave it out, because a model that never learns it never
stops.

For other templates the conversation is rendered a second time, with a unique private-use character
on either side of each answer's words. The marks stay beside the words if the template trims, merges
or moves them. Without the marks, the second text must equal the first.
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
    """A conversation as text, rendered by the template."""

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
            DataError: the template refuses the conversation, leaves the answers out, or rewrites
                them so that they cannot be found.
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
        """Pattern of the end of a turn, from the text after the last answer."""
        found = re.compile(rf"\s*({self._special.pattern})").match(rest)
        # A template may end turns by text that is not a special token, or not at all.
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
        offsets = self._mark_offsets(marked, marks, text, where)
        spans: list[Span] = []
        previous_end = 0
        for index, (opening, closing) in marks.items():
            if closing not in offsets:
                continue  # the template drops this turn
            end = offsets[closing]
            start = offsets.get(opening)
            if start is None:
                start = self._start_by_prefix(messages[:index], text, end, where)
            else:
                start = self._start_by_header(text, previous_end, start)
            spans.append((start, end))
            previous_end = end
        return spans

    def _mark_offsets(
        self,
        marked: Sequence[Message],
        marks: dict[int, tuple[str, str]],
        text: str,
        where: str,
    ) -> dict[str, int]:
        """Offset in ``text`` of every mark that the template kept."""
        rendered, _ = self._template.render(marked, where=where)
        all_marks = {mark for pair in marks.values() for mark in pair}
        pieces = re.split(f"([{''.join(sorted(all_marks))}])", rendered)
        offsets: dict[str, int] = {}
        length = 0
        for piece in pieces:
            if piece not in all_marks:
                length += len(piece)
            elif piece in offsets:
                raise self._unrecognizable(where)
            else:
                offsets[piece] = length
        if "".join(piece for piece in pieces if piece not in all_marks) != text:
            raise self._unrecognizable(where)
        return offsets

    def _start_by_header(self, text: str, previous_end: int, start: int) -> int:
        """End of the generation prompt before an answer.

        More than the answer's words may follow it: an empty thought in Qwen3, a space in Llama 2.
        The model has to generate both.
        """
        prompt = self._template.generation_prompt
        before = text[previous_end:start]
        if not prompt:
            return previous_end + len(before.rstrip(" "))
        found = before.rfind(prompt)
        return start if found < 0 else previous_end + found + len(prompt)

    def _start_by_prefix(self, history: Sequence[Message], text: str, end: int, where: str) -> int:
        """Length of the prompt that the model would get, for answers rewritten at the front.

        Some templates cut the thoughts off earlier answers, or lay them out again.
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
    """The message with marks around its words, inside the white space that templates trim."""
    texts = [part.text for part in message.parts if isinstance(part, TextPart)]
    filled = [index for index, text in enumerate(texts) if text.strip()]
    first = filled[0]
    last = filled[-1]
    head = len(texts[first]) - len(texts[first].lstrip())
    texts[first] = texts[first][:head] + opening + texts[first][head:]
    tail = len(texts[last].rstrip())
    texts[last] = texts[last][:tail] + closing + texts[last][tail:]
    return Message(message.role, tuple(TextPart(text) for text in texts))
