"""The spans of the assistant's responses in the rendered text of a conversation.

A response is what the model has to generate. It begins where the text departs from the generation
prompt, and ends with the token at which the model stops. Templates with ``{% generation %}`` tags
mark it themselves. A header inside the tags is left out, and a stop outside them is added.

The conversation is rendered a second time with marks beside its words, which shows where the
template puts them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from vlsi_cache.data.conversation import Conversation, Message, TextPart
from vlsi_cache.data.encoding.notices import Notices
from vlsi_cache.data.encoding.rendering.endings import TurnEnding
from vlsi_cache.data.encoding.rendering.forms import PROBE
from vlsi_cache.data.encoding.rendering.marks import (
    MarkedConversation,
    mark_conversation,
    offsets_of,
)
from vlsi_cache.data.encoding.rendering.template import ChatTemplate
from vlsi_cache.data.encoding.rendering.text import Span, common_beginning
from vlsi_cache.data.encoding.rendering.written import WrittenWhole
from vlsi_cache.errors import DataError

__all__ = ["RenderedConversation", "ResponseFinder"]

_UNTAGGED: Final = "%s: the chat template's tags leave an answer out"


@dataclass(frozen=True, slots=True)
class RenderedConversation:
    """A conversation as text, rendered by the template."""

    text: str
    """The whole text, images as their placeholders."""
    responses: tuple[Span, ...]
    """Characters of the responses that are learned, in order, with what closes them."""
    is_plain: bool = False
    """Whether no template made the text. All tokens from the response on are learned."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """One of the assistant's turns in the text."""

    index: int
    """Number of its message."""
    first: int
    """First character of its words."""
    last: int
    """One past their last that is known. What closes the turn comes after it."""
    mark: str
    """The mark there."""


class ResponseFinder:
    """Renders conversations and finds the responses in them.

    Args:
        template: the chat template.
        ending: finds the ends of turns.
        notices: says each warning once.
    """

    def __init__(self, template: ChatTemplate, ending: TurnEnding, notices: Notices) -> None:
        self._template = template
        self._ending = ending
        self._notices = notices
        self._written = WrittenWhole(template, notices)

    def __call__(
        self, conversation: Conversation, *, where: str, following: Message | None = None
    ) -> RenderedConversation:
        """Render a conversation, the last turn of which is an answer that is learned.

        Args:
            conversation: the conversation.
            where: name of the sample.
            following: the turn that comes next in the data. It is not rendered, but some templates
                let it end the last answer. The text then goes on to that stop.

        Raises:
            DataError: the template refuses the conversation, drops a part of it, or rewrites
                answers so that they cannot be found.
        """
        self._written.validate_given(conversation, where)
        text, tags = self._template.render(conversation, where=where)
        self._written.validate_surroundings(conversation, text, where)
        located = self._locate(conversation, text, where)
        if located is None:
            return RenderedConversation(text, self._by_tags_alone(conversation, text, tags, where))
        marked, answers, given = located
        if following is not None and answers:
            text = self._with_next_stop(marked, answers[-1], text, following)
        spans = []
        previous = 0
        for answer in answers:
            if conversation.messages[answer.index].learned:
                start = partial(self._start, conversation, answer, previous, text)
                own = _spans_of(answer, answers, tags, start)
                if own:
                    own[-1] = (own[-1][0], self._end(marked, answer, text, own[-1][1], where))
                else:
                    self._notices.warn("untagged", _UNTAGGED, where)
                spans += own
            previous = answer.last
        spans = [span for span in spans if span[0] < span[1]]
        self._warn_of_header(text, spans)
        self._written.validate_given_words(spans, given, where)
        return RenderedConversation(text, tuple(spans))

    def _locate(
        self, conversation: Conversation, text: str, where: str
    ) -> tuple[MarkedConversation, list[_Answer], list[tuple[str, int]]] | None:
        """The answers in the text, and where words of each other role stand.

        None if only the template's tags can find the answers.
        """
        for answers_only in (False, True):
            marked = mark_conversation(conversation, text, answers_only=answers_only)
            try:
                rendered, _ = self._template.render(marked.conversation, where=where)
            except DataError:
                continue
            plain, offsets = offsets_of(marked, rendered)
            twice = any(
                len(offsets.get(mark, ())) > 1
                for marks in marked.turns
                for mark in (marks.opening, marks.closing)
            )
            if plain == text and not twice:
                self._written.validate(marked, offsets, conversation, where)
                answers = self._answers(marked, offsets, conversation, text, where)
                return marked, answers, _given(marked, offsets)
        if self._template.has_tags:
            return None
        raise DataError(
            "chat template rewrites the answers, so that they cannot be found in its text",
            where=where,
            found=self._template.name,
            mend="Mark the answers in the template with {% generation %} … {% endgeneration %}",
        )

    def _answers(
        self,
        marked: MarkedConversation,
        offsets: Mapping[str, Sequence[int]],
        conversation: Conversation,
        text: str,
        where: str,
    ) -> list[_Answer]:
        found: list[_Answer] = []
        final = len(conversation.messages) - 1
        for index, marks in enumerate(marked.turns):
            kept = {mark: offsets[mark][0] for mark in marks.answer() if mark in offsets}
            if not kept:
                continue
            first = min(kept.values())
            if marks.opening and marks.opening not in kept:
                words = conversation.messages[index].text.strip()
                end = kept[marks.closing]
                begins = self._header_end(text, found[-1].last if found else 0, end)
                front, cut = _walk_back(text, (begins, end), words)
                self._written.validate_front(cut, where, is_last=index == final)
                first = min(first, front)
            mark = max(kept, key=lambda mark: kept[mark])
            found.append(_Answer(index, first, kept[mark], mark))
        return found

    def _start(self, conversation: Conversation, answer: _Answer, previous: int, text: str) -> int:
        """Where the text departs from what the model is given before this answer."""
        history = replace(conversation, messages=conversation.messages[: answer.index])
        prompt = self._text_of(history, add_generation_prompt=True)
        # Without any turn, a template may write no prompt at all, and a header before the answer.
        is_given = bool(prompt or history.messages)
        if (
            prompt is not None
            and is_given
            and text.startswith(prompt)
            and len(prompt) <= answer.last
        ):
            return len(prompt)
        # Before its first turn, a template may write a system message that no history has.
        bare = self._text_of(history) if history.messages else None
        if prompt is not None and bare is not None and text.startswith(bare):
            start = len(bare)
            self._warn_of_departure(text[start:], answer, conversation)
            if prompt.startswith(bare):
                start += len(common_beginning(text[start:], prompt[start:]))
            # A turn that follows an answer may be opened in another way than after a question.
            return min(max(start, self._header_end(text, len(bare), answer.first)), answer.first)
        return self._start_by_header(text, previous, answer.first)

    def _header_end(self, text: str, previous: int, end: int) -> int:
        """One past the last header of the assistant's between two characters."""
        header = self._template.history_header
        found = text.rfind(header, previous, end) if header.strip() else -1
        return previous if found < 0 else found + len(header)

    def _start_by_header(self, text: str, previous: int, first: int) -> int:
        """The same for a history that the template writes in another way than before it."""
        prompt = self._template.generation_prompt
        header = self._template.history_header
        if not header:
            return previous + len(text[previous:first].rstrip(" "))
        found = text.rfind(header, previous, first)
        if found < 0:
            return first
        if text.startswith(prompt, found):
            return found + len(prompt)
        return min(found + len(common_beginning(text[found:], prompt)), first)

    def _warn_of_header(self, text: str, spans: Sequence[Span]) -> None:
        header = self._template.unprompted_header
        if header and any(text[start:end].lstrip().startswith(header) for start, end in spans):
            self._notices.warn(
                "header",
                "the chat template writes no generation prompt, so that the model learns to write "
                "%r before each answer itself",
                header,
            )

    def _warn_of_departure(self, rest: str, answer: _Answer, conversation: Conversation) -> None:
        prompt = self._template.generation_prompt
        opened = prompt.removeprefix(self._template.history_header).strip()
        is_last = answer.index == len(conversation.messages) - 1
        if is_last and opened and not rest.startswith(prompt):
            self._notices.warn(
                "departure",
                "the generation prompt opens with %r, and answers do not: the model learns them "
                "after another beginning than it will get",
                opened,
            )

    def _end(
        self, marked: MarkedConversation, answer: _Answer, text: str, end: int, where: str
    ) -> int:
        """One past the token at which the model stops, or past the turn's last character."""
        length, stops = self._ending.find(text[answer.last :], self._reference(marked, answer))
        if stops:
            return answer.last + length
        self._notices.warn(
            "no stop",
            "%s: the chat template writes no token after the answer, so that no stop is learned",
            where,
        )
        return max(end, answer.last + length)

    def _with_next_stop(
        self, marked: MarkedConversation, answer: _Answer, text: str, following: Message
    ) -> str:
        """The text, up to the stop that the next turn writes if the answer's own turn has none."""
        tail = text[answer.last :]
        if self._ending.find(tail, self._reference(marked, answer))[1]:
            return text
        continued = self._tail(marked, answer, (*marked.conversation.messages, following))
        if continued is None:
            return text
        length, stops = self._ending.find(continued, tail)
        return text[: answer.last] + continued[:length] if stops else text

    def _reference(self, marked: MarkedConversation, answer: _Answer) -> str | None:
        """The text after an answer where the conversation goes on differently."""
        for messages in _continuations(marked.conversation.messages, answer.index):
            tail = self._tail(marked, answer, messages)
            if tail is not None:
                return tail
        return None

    def _tail(
        self, marked: MarkedConversation, answer: _Answer, messages: tuple[Message, ...]
    ) -> str | None:
        """The text after an answer in another conversation. None if the template refuses it."""
        rendered = self._text_of(replace(marked.conversation, messages=messages))
        if rendered is None:
            return None
        plain, offsets = offsets_of(marked, rendered)
        return plain[offsets[answer.mark][0] :] if answer.mark in offsets else None

    def _text_of(
        self, conversation: Conversation, *, add_generation_prompt: bool = False
    ) -> str | None:
        try:
            return self._template.render(
                conversation, where="", add_generation_prompt=add_generation_prompt
            )[0]
        except DataError:
            return None

    def _by_tags_alone(
        self, conversation: Conversation, text: str, tags: Sequence[Span], where: str
    ) -> tuple[Span, ...]:
        """The tags' own spans, for a template that rewrites answers."""
        tags = [(start, end) for start, end in tags if start < end]
        answers = [message for message in conversation.messages if message.role == "assistant"]
        if not tags or (
            len(tags) != len(answers) and not all(message.learned for message in answers)
        ):
            raise DataError(
                "chat template leaves the answers out",
                where=where,
                expected=f"{len(answers)} spans of {{% generation %}} tags",
                found=len(tags),
                mend="Check the template's treatment of the assistant's turns",
            )
        if len(tags) == len(answers):
            tags = [tag for tag, message in zip(tags, answers, strict=True) if message.learned]
        return tuple((start, end + self._closing(text[end:])) for start, end in tags)

    def _closing(self, tail: str) -> int:
        return self._ending.find(tail, "")[0]


def _spans_of(
    answer: _Answer, answers: Sequence[_Answer], tags: Sequence[Span], start: Callable[[], int]
) -> list[Span]:
    """An answer's spans: the template's tags in it, or all of it where there are no tags at all."""
    if not tags:
        return [(start(), answer.last)]
    own = _tags_of(answer, answers, tags)
    if not own:
        return []
    begins = start()
    # Tags may stand around other turns, too. Those end before the answer begins.
    return [(max(tag[0], begins), tag[1]) for tag in own if tag[1] > begins]


def _tags_of(answer: _Answer, answers: Sequence[_Answer], tags: Sequence[Span]) -> list[Span]:
    """The tags that lie in an answer's turn."""
    position = answers.index(answer)
    begins = answers[position - 1].last if position else -1
    return [tag for tag in tags if begins <= tag[0] <= answer.last and tag[0] < tag[1]]


def _given(
    marked: MarkedConversation, offsets: Mapping[str, Sequence[int]]
) -> list[tuple[str, int]]:
    """Where words of turns stand that are not the assistant's, with their roles."""
    turns = zip(marked.conversation.messages, marked.turns, strict=True)
    return [(turn.role, place) for turn, marks in turns for place in offsets.get(marks.words, ())]


def _walk_back(text: str, within: Span, words: str) -> tuple[int, str]:
    """Follow an answer's words from their end to their beginning, through other white space.

    Args:
        text: the rendered text.
        within: the end of the words, and the earliest character that may be one of them.
        words: the words.

    Returns:
        First character of the words that are there, and the words before it that are not.
    """
    floor, first = within
    remaining = len(words)
    position = first
    while remaining:
        if words[remaining - 1].isspace():
            remaining -= 1
        elif position > floor and text[position - 1].isspace():
            position -= 1
        elif position > floor and text[position - 1] == words[remaining - 1]:
            remaining -= 1
            position -= 1
            first = position
        else:
            break
    return first, words[:remaining].strip()


def _continuations(messages: Sequence[Message], index: int) -> Iterator[tuple[Message, ...]]:
    """Other conversations that are the same up to the end of one turn."""
    own = tuple(messages[: index + 1])
    if index < len(messages) - 1:
        yield own
        return
    for role in ("user", "tool"):
        yield (*own, Message(role, (TextPart(PROBE["user"]),)))
