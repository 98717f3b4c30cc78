"""Whether the template writes all that it is given."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from vlsi_cache.data.conversation import RESERVED_VARIABLES, Conversation, Message
from vlsi_cache.data.encoding.notices import Notices
from vlsi_cache.data.encoding.rendering.marks import MarkedConversation, Marks
from vlsi_cache.data.encoding.rendering.template import ChatTemplate
from vlsi_cache.data.encoding.rendering.text import Span
from vlsi_cache.errors import DataError, excerpt

__all__ = ["WrittenWhole"]

Offsets = Mapping[str, Sequence[int]]
_THOUGHT = re.compile(r"think|thought|reason", re.IGNORECASE)


class WrittenWhole:
    """Refuses conversations that the template writes in part, and names the part.

    What changes no word of the conversation (a turn's ``name``, a variable that the template does
    not read) is warned about once instead.

    Args:
        template: the chat template.
        notices: says each warning once.
    """

    def __init__(self, template: ChatTemplate, notices: Notices) -> None:
        self._template = template
        self._notices = notices

    def validate(
        self, marked: MarkedConversation, offsets: Offsets, conversation: Conversation, where: str
    ) -> None:
        """Validate the turns.

        Args:
            marked: the conversation with its marks.
            offsets: the marks that the template kept, and where.
            conversation: the conversation. Its last turn is an answer.
            where: name of the sample.

        Raises:
            DataError: the template drops a turn, a text, a call, or the last answer's thought.
        """
        *_, last = conversation.messages
        for message, marks in zip(conversation.messages, marked.turns, strict=True):
            if message.role == "assistant":
                self._validate_answer(marks, offsets, where)
                self._validate_thought(marks, offsets, where, is_last=message is last)
            elif marks.words and marks.words not in offsets:
                raise self._dropped(f"the turn of role {message.role}", where)
            if marks.name and marks.name not in offsets:
                self._warn("name", where)
            self._warn_unread_fields(message, where)

    def validate_given(self, conversation: Conversation, where: str) -> None:
        """Validate the names of the variables, and the shape of calls.

        Raises:
            DataError: a variable has the name of something that is given anyway, or a call has no
                name of a function.
        """
        for message in conversation.messages:
            for call in message.fields.get("tool_calls") or ():
                if not _is_call(call):
                    raise DataError(
                        "a call of a tool names no function",
                        where=where,
                        expected='{"type": "function", "function": {"name": …, "arguments": {…}}}',
                        found=excerpt(repr(call)),
                    )
        taken = sorted(RESERVED_VARIABLES & set(conversation.template_variables))
        if taken:
            raise DataError(
                "variables of the chat template have names that are taken",
                where=where,
                found=", ".join(taken),
                mend="Remove them from the sample's or the recipe's template variables",
            )

    def validate_surroundings(self, conversation: Conversation, text: str, where: str) -> None:
        """Validate tools and variables.

        Raises:
            DataError: the template does not write the tools.
        """
        if conversation.tools:
            bare = replace(conversation, tools=())
            if self._template.render(bare, where=where)[0] == text:
                raise self._dropped("the tools", where)
        for name in conversation.template_variables:
            if not self._template.reads(name):
                self._warn(f"the variable {name}", where)

    def validate_front(self, cut: str, where: str, *, is_last: bool) -> None:
        """Validate what the template cut off the front of an answer.

        Earlier answers may lose their thoughts, because the model sees them without.

        Raises:
            DataError: the answer is the last one, or more than a thought is gone.
        """
        is_thought = _THOUGHT.search(cut) is not None
        if not cut or (is_thought and not is_last):
            return
        what = "the thought of the last answer" if is_thought else "the beginning of an answer"
        raise self._dropped(what, where, found=excerpt(cut))

    def validate_given_words(
        self, spans: Sequence[Span], given: Sequence[tuple[str, int]], where: str
    ) -> None:
        """Validate that nothing is learned that another role says.

        Args:
            spans: what is learned.
            given: roles, and a place in the words of each of their turns.
            where: name of the sample.

        Raises:
            DataError: words of another role stand in an answer.
        """
        for role, place in given:
            if any(start < place < end for start, end in spans):
                raise DataError(
                    f"chat template writes what the {role} says into an answer",
                    where=where,
                    found=self._template.name,
                    mend="Mark the answers in the template with {% generation %} … "
                    "{% endgeneration %}",
                )

    def _validate_answer(self, marks: Marks, offsets: Offsets, where: str) -> None:
        if any(mark not in offsets for mark in marks.calls):
            raise self._dropped("a call of a tool (tool_calls)", where)
        if not any(mark in offsets for mark in marks.answer()):
            raise DataError(
                "chat template leaves the answers out",
                where=where,
                found=self._template.name,
                mend="Check the template's treatment of the assistant's turns",
            )
        if marks.closing and marks.closing not in offsets:
            beside = " beside tool_calls" if marks.calls else " beside reasoning_content"
            raise self._dropped(f"an answer's text{beside}", where)

    def _validate_thought(
        self, marks: Marks, offsets: Offsets, where: str, *, is_last: bool
    ) -> None:
        if not marks.thought or marks.thought in offsets:
            return
        if is_last:
            raise self._dropped("the thought of the last answer (reasoning_content)", where)
        if not self._template.reads("reasoning_content") and not self._template.reads("thinking"):
            self._warn("reasoning_content", where)

    def _warn_unread_fields(self, message: Message, where: str) -> None:
        for name in message.fields:
            known = name in ("name", "reasoning_content", "tool_calls")
            if not known and not self._template.reads(name):
                self._warn(name, where)

    def _warn(self, what: str, where: str) -> None:
        self._notices.warn(f"unread {what}", "%s: the chat template does not read %s", where, what)

    def _dropped(self, what: str, where: str, *, found: str | None = None) -> DataError:
        is_several = what == "the tools"
        first = f"Take {'them' if is_several else 'it'} out of the sample"
        if what.endswith(" developer"):
            first = "Name the role system"
        return DataError(
            f"chat template drops {what}",
            where=where,
            found=found,
            mend=f"{first}, or save a chat template that writes {'them' if is_several else 'it'}",
        )


def _is_call(call: object) -> bool:
    function = call.get("function") if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    return isinstance(name, str) and bool(name.strip())
