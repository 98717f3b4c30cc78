"""Conversations as text, by the processor's own chat template."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils.chat_template_utils import render_jinja_template

from vlsi_cache.data.conversation import Conversation, Message, TextPart
from vlsi_cache.data.encoding.rendering.day import DATE_STRING, with_pinned_day
from vlsi_cache.data.encoding.rendering.forms import (
    CALL_FORMS,
    NO_CONTENT,
    PROBE,
    TOOL,
    CallForm,
    opening_turn,
    probe_turns,
)
from vlsi_cache.data.encoding.rendering.tags import has_tags, spans_of_marks, with_marks
from vlsi_cache.data.encoding.rendering.text import Span, common_beginning
from vlsi_cache.errors import DataError, ModelError
from vlsi_cache.models import processor_name, tokenizer_of

__all__ = ["ChatTemplate", "has_template"]

_LIKE_A_TAG = re.compile(r"[<\[{|].*[>\]}|]")  # words may be added to a vocabulary, too
# What templates raise on a conversation that they do not take. Jinja's own errors, and Python's,
# because a template may add, index or call anything.
_REFUSALS = (
    *(TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError),
    RecursionError,
)


class ChatTemplate:
    """The chat template of a processor, with its properties.

    Attributes:
        has_tags: whether the template marks the assistant's text with ``{% generation %}``.
        question: the text of a question alone.
        generation_prompt: the text that opens the assistant's turn. It may be empty.
        history_header: the beginning of the generation prompt that earlier turns of the assistant
            have, too. It ends before a thought that only the generation prompt opens.
        unprompted_header: what stands before an answer, if no generation prompt writes it.

    Args:
        processor: a processor, or the tokenizer of a text model.

    Raises:
        ModelError: there is no chat template, or it does not render a plain question and answer.
    """

    def __init__(self, processor: ProcessorMixin | PreTrainedTokenizerBase) -> None:
        self.name = type(processor).__name__
        self._model = processor_name(processor)
        self.image_token: str | None = None
        if isinstance(processor, ProcessorMixin):
            token = getattr(processor, "image_token", None)
            self.image_token = token if isinstance(token, str) else None
        tokenizer = tokenizer_of(processor)
        self._plain_source, self._tools_source = _sources(processor, tokenizer)
        self.beginning: str | None = tokenizer.bos_token
        self.end: str | None = tokenizer.eos_token
        self._variables = {**tokenizer.special_tokens_map, "date_string": DATE_STRING}
        self.has_tags = has_tags(self._plain_source)
        prefers_parts = isinstance(processor, ProcessorMixin)
        self._takes_parts, self._opening = self._find_form(prefer_parts=prefers_parts)
        self.question = self._try(probe_turns(parts=self._takes_parts)[:1], {}) or ""
        self.generation_prompt, self.history_header = self._find_prompts()
        self.unprompted_header = self._find_unprompted_header()

    def render(
        self, conversation: Conversation, *, where: str, add_generation_prompt: bool = False
    ) -> tuple[str, list[Span]]:
        """Render a conversation: its text, and the spans of its ``{% generation %}`` tags.

        Raises:
            DataError: the template refuses the conversation.
        """
        turns = [self._turn(message) for message in conversation.messages]
        given = {
            "tools": list(conversation.tools) or None,
            "add_generation_prompt": add_generation_prompt,
            **conversation.template_variables,
        }
        try:
            return self._render(turns, given)
        except _REFUSALS as error:
            roles = ", ".join(message.role for message in conversation.messages)
            raise DataError(
                f"chat template refuses the conversation ({error})",
                where=where,
                found=f"turns {roles}",
                mend="Bring the turns into the order that the model's template wants",
            ) from error

    def reads(self, name: str) -> bool:
        """Whether the template mentions a name."""
        pattern = re.compile(rf"\b{re.escape(name)}\b")
        return any(pattern.search(source) for source in {self._plain_source, self._tools_source})

    def control_tokens(self, processor: Any) -> frozenset[str]:
        """Special tokens to which the template, the processor or the tokenizer gives a meaning.

        Special tokens that only data writes (Qwen2-VL's ``<|box_start|>``) are not among them. Of
        added tokens that are not special, those that begin and end turns are.
        """
        tokenizer = tokenizer_of(processor)
        added = tokenizer.added_tokens_decoder.values()
        special = {token.content for token in added if token.special}
        named = {value for name, value in vars(processor).items() if name.endswith("_token")}
        named |= {value for value in tokenizer.special_tokens_map.values() if value}
        turns = probe_turns(parts=self._takes_parts)
        written = self._plain_source + self._tools_source
        written += self._try(turns, {"add_generation_prompt": True}) or ""
        found = {token for token in special if token in written}
        around = self.question + "".join(self._after_answer())
        looks = {token.content for token in added if _LIKE_A_TAG.fullmatch(token.content)}
        found |= {token for token in looks if token in around}
        found |= {token for token in named if isinstance(token, str) and token}
        return frozenset(token for token in found if len(token) > 1 and not token.isspace())

    def answer_tokens(self, special: re.Pattern[str]) -> frozenset[str]:
        """Special tokens that the template writes inside an answer: for calls and for thoughts.

        Those that also stand elsewhere are not among them: headers, and what ends a turn. But one
        at which the template itself splits answers may stand in a header (DeepSeek V3.1).
        """
        question, answer = probe_turns(parts=self._takes_parts)
        thinking = {**answer, "reasoning_content": PROBE["thought"]}
        thought = (self._try([question, thinking], {}) or "")[len(self.question) :]
        inside = [self.generation_prompt.removeprefix(self.history_header)]
        inside.append(_without_stop(thought, special))
        if self.call_form is not None:
            # Llama 3.1 writes <|python_tag|> before calls of tools that it calls built-in.
            for given in ({}, {"builtin_tools": [TOOL["function"]["name"]]}):
                text = self._try([question, self.call_form.probe()], {"tools": [TOOL], **given})
                inside.append(_without_stop((text or "").rpartition(PROBE["user"])[2], special))
        ends = set(special.findall("".join(self._after_answer())))
        elsewhere = {*ends, *special.findall(self.question + self.history_header)}
        found = {token for text in inside for token in special.findall(text)} - elsewhere
        # A template also takes thoughts out of answers: '</think>' in content.
        source = self._plain_source + self._tools_source
        found |= {
            token
            for token in special.findall(source)
            if re.search(
                rf"""split\(\s*['"]{re.escape(token)}|{re.escape(token)}['"]\s+in\b""", source
            )
        }
        return frozenset(found - ends)

    def _after_answer(self) -> list[str]:
        """What follows an answer: at the end, and before another question."""
        question, answer = probe_turns(parts=self._takes_parts)
        return [
            (self._try(turns, {}) or "").partition(PROBE["assistant"])[2]
            for turns in ([question, answer], [question, answer, question])
        ]

    @cached_property
    def call_form(self) -> CallForm | None:
        """The form in which the template takes calls of tools. None if it writes none."""
        question = probe_turns(parts=self._takes_parts)[0]
        for form in CALL_FORMS:
            text = self._try([question, form.probe()], {"tools": [TOOL]})
            if text is not None and form.is_written_in(text):
                return form
        return None

    def _turn(self, message: Message) -> dict[str, Any]:
        turn: dict[str, Any] = {"role": message.role, "content": self._content(message)}
        calls = message.fields.get("tool_calls")
        form = self.call_form if calls else None
        if form is not None and not message.parts:
            turn["content"] = form.content
        if turn["content"] is NO_CONTENT:
            del turn["content"]
        turn |= message.fields
        if form is not None:
            turn["tool_calls"] = [form.call(call) for call in calls or ()]
        return turn

    def _try(self, turns: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> str | None:
        try:
            return self._render([*self._opening, *turns], given)[0]
        except _REFUSALS:
            return None

    def _render(
        self, turns: Sequence[Mapping[str, Any]], given: Mapping[str, Any]
    ) -> tuple[str, list[Span]]:
        source = self._tools_source if given.get("tools") else self._plain_source
        text, counted = self._write(source, turns, given)
        if not has_tags(source):
            return text, []
        marked, _ = self._write(with_marks(source), turns, given)
        found = spans_of_marks(marked, text)
        return text, counted if found is None else found

    def _write(
        self, source: str, turns: Sequence[Mapping[str, Any]], given: Mapping[str, Any]
    ) -> tuple[str, list[Span]]:
        """The text, and the spans of the tags as transformers counts them."""
        # Any, because transformers annotates it as if it returned one string.
        render: Any = render_jinja_template
        texts, spans = render(
            conversations=[list(turns)],
            chat_template=source,
            # A template without tags logs a warning if it is asked for spans.
            return_assistant_tokens_mask=has_tags(source),
            **{**self._variables, "add_generation_prompt": False, **given},
        )
        return texts[0], list(spans[0]) if has_tags(source) else []

    def _content(self, message: Message) -> str | list[dict[str, str]]:
        if self._takes_parts:
            return [
                {"type": "text", "text": part.text}
                if isinstance(part, TextPart)
                else {"type": "image"}
                for part in message.parts
            ]
        return "".join(
            part.text if isinstance(part, TextPart) else self.image_token or ""
            for part in message.parts
        )

    def _find_form(self, *, prefer_parts: bool) -> tuple[bool, list[dict[str, Any]]]:
        """Find how the template takes contents, and the turn without which it refuses all.

        Returns:
            Whether contents are lists of parts rather than strings, and a system turn or none.
        """
        errors = []
        for opens, parts in itertools.product((False, True), (prefer_parts, not prefer_parts)):
            opening = opening_turn(parts=parts) if opens else []
            try:
                text, _ = self._render([*opening, *probe_turns(parts=parts)], {})
            except _REFUSALS as error:
                errors.append(str(error))
                continue
            # A template that takes strings prints a list as Python would.
            words = (PROBE["user"], PROBE["assistant"])
            if all(word in text for word in words) and "'type'" not in text:
                return parts, opening
            errors.append("a text without them")
        raise ModelError(
            "chat template does not render a question and an answer",
            where=self._model,
            found="; ".join(dict.fromkeys(errors)),
            mend="Save the model's chat template with its processor",
        )

    def _find_prompts(self) -> tuple[str, str]:
        question, answer = probe_turns(parts=self._takes_parts)
        bare = self._try([question], {})
        prompted = self._try([question], {"add_generation_prompt": True})
        if bare is None or prompted is None or not prompted.startswith(bare):
            return "", ""
        prompt = prompted[len(bare) :]
        talk = self._try([question, answer, question], {}) or ""
        end = talk.find(PROBE["assistant"])
        header = talk[len(bare) : end] if talk.startswith(bare) and end >= 0 else prompt
        # What closes the question may stand before the header, and not before the prompt.
        header = header[max(header.find(prompt), 0) :]
        return prompt, common_beginning(prompt, header)

    def _find_unprompted_header(self) -> str:
        if self.generation_prompt:
            return ""
        turns = probe_turns(parts=self._takes_parts)
        talk = self._try(turns, {}) or ""
        if not talk.startswith(self.question):
            return ""
        return talk[len(self.question) :].partition(PROBE["assistant"])[0].strip()


def _without_stop(text: str, special: re.Pattern[str]) -> str:
    """The text before its last special token."""
    found = list(special.finditer(text))
    return text[: found[-1].start()] if found else text


def has_template(processor: Any) -> bool:
    """Whether there is a chat template that is used where none is named."""
    return _found(processor, tokenizer_of(processor)) is not None


def _sources(processor: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The template of conversations without tools, and of those with tools."""
    found = _found(processor, tokenizer)
    if found is None:
        raise ModelError(
            "processor has no chat template",
            where=processor_name(processor),
            mend="Take the instruction-tuned model, or save a chat template with its processor. A "
            "base model reads rows of text, or of prompt and completion",
        )
    return with_pinned_day(found[0]), with_pinned_day(found[1])


def _found(processor: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | None:
    for owner in (processor, tokenizer):
        found = getattr(owner, "chat_template", None)
        if isinstance(found, dict) and "default" in found:
            # As transformers chooses: some families keep a second template for tools.
            return str(found["default"]), str(found.get("tool_use", found["default"]))
        if isinstance(found, str):
            return found, found
    return None
