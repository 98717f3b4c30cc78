"""Conversations as text, by the processor's own chat template."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils.chat_template_utils import render_jinja_template

from vlsi_cache.data.conversation import Message, TextPart
from vlsi_cache.errors import DataError, ModelError
from vlsi_cache.models import tokenizer_of

__all__ = ["ChatTemplate", "Span", "any_of"]

Span = tuple[int, int]
"""First character, and one past the last."""

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
# Llama 3 writes today's date into the system message unless it gets one. A cache that depended on
# the day could not be resumed. This is the date of Llama's own default.
_FIXED = {"date_string": "26 Jul 2024"}
_PROBE = {"user": "Which hue", "assistant": "Vermilion"}


class ChatTemplate:
    """The chat template of a processor, with its properties.

    Attributes:
        has_tags: whether the template marks the assistant's text with ``{% generation %}``.
        generation_prompt: the text that opens the assistant's turn. It may be empty.

    Args:
        processor: a processor, or the tokenizer of a text model.

    Raises:
        ModelError: there is no chat template, or it does not render a plain question and answer.
    """

    def __init__(self, processor: ProcessorMixin | PreTrainedTokenizerBase) -> None:
        self.name = type(processor).__name__
        self.image_token: str | None = None
        if isinstance(processor, ProcessorMixin):
            token = getattr(processor, "image_token", None)
            self.image_token = token if isinstance(token, str) else None
        tokenizer = tokenizer_of(processor)
        self.source = _source(processor, tokenizer)
        self._variables = {**tokenizer.special_tokens_map, **_FIXED}
        self.has_tags = _GENERATION_TAG.search(self.source) is not None
        self._takes_parts = self._find_form(prefer_parts=isinstance(processor, ProcessorMixin))
        self.generation_prompt = self._find_generation_prompt()

    def render(
        self, messages: Sequence[Message], *, where: str, add_generation_prompt: bool = False
    ) -> tuple[str, list[Span]]:
        """Render a conversation: its text, and the spans of its ``{% generation %}`` tags.

        Raises:
            DataError: the template refuses the conversation.
        """
        turns = [
            {"role": message.role, "content": self._content(message, parts=self._takes_parts)}
            for message in messages
        ]
        try:
            return self._render(turns, add_generation_prompt)
        except (TemplateError, TypeError, ValueError, LookupError) as error:
            roles = ", ".join(message.role for message in messages)
            raise DataError(
                f"chat template refuses the conversation ({error})",
                where=where,
                found=f"turns {roles}",
                mend="Bring the turns into the order that the model's template wants",
            ) from error

    def control_tokens(self, processor: Any) -> frozenset[str]:
        """Special tokens to which the template, the processor or the tokenizer gives a meaning.

        Special tokens that only data writes (Qwen2-VL's ``<|box_start|>``) are not among them.
        """
        tokenizer = tokenizer_of(processor)
        special = {
            token.content for token in tokenizer.added_tokens_decoder.values() if token.special
        }
        named = {value for name, value in vars(processor).items() if name.endswith("_token")}
        named |= {value for value in tokenizer.special_tokens_map.values() if value}
        written = self.source + self._render(_probe_turns(parts=self._takes_parts), True)[0]
        found = {token for token in special if token in written}
        found |= {token for token in named if isinstance(token, str) and token}
        return frozenset(token for token in found if len(token) > 1 and not token.isspace())

    def _render(
        self, turns: Sequence[Mapping[str, Any]], add_generation_prompt: bool
    ) -> tuple[str, list[Span]]:
        # Any, because transformers annotates it as if it returned one string.
        render: Any = render_jinja_template
        texts, spans = render(
            conversations=[list(turns)],
            chat_template=self.source,
            # A template without tags logs a warning if it is asked for spans.
            return_assistant_tokens_mask=self.has_tags,
            add_generation_prompt=add_generation_prompt,
            **self._variables,
        )
        return texts[0], list(spans[0]) if self.has_tags else []

    def _content(self, message: Message, *, parts: bool) -> str | list[dict[str, str]]:
        if parts:
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

    def _find_form(self, *, prefer_parts: bool) -> bool:
        """Whether the template wants content as a list of parts rather than a string."""
        errors = []
        for parts in (prefer_parts, not prefer_parts):
            try:
                text, _ = self._render(_probe_turns(parts=parts), False)
            except (TemplateError, TypeError, ValueError, LookupError) as error:
                errors.append(str(error))
                continue
            # A template that takes strings prints a list as Python would.
            if all(words in text for words in _PROBE.values()) and "'type'" not in text:
                return parts
        raise ModelError(
            "chat template does not render a question and an answer",
            where=self.name,
            found="; ".join(errors) or "a text without them",
            mend="Save the model's chat template with its processor",
        )

    def _find_generation_prompt(self) -> str:
        question = _probe_turns(parts=self._takes_parts)[:1]
        bare, _ = self._render(question, False)
        prompted, _ = self._render(question, True)
        return prompted[len(bare) :] if prompted.startswith(bare) else ""


def any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Pattern that matches any of the tokens, longer ones first."""
    longest_first = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _probe_turns(*, parts: bool) -> list[dict[str, Any]]:
    return [
        {"role": role, "content": [{"type": "text", "text": words}] if parts else words}
        for role, words in _PROBE.items()
    ]


def _source(processor: Any, tokenizer: PreTrainedTokenizerBase) -> str:
    for owner in (processor, tokenizer):
        template = getattr(owner, "chat_template", None)
        if isinstance(template, dict):
            template = template.get("default")
        if isinstance(template, str):
            return template
    raise ModelError(
        "processor has no chat template",
        where=type(processor).__name__,
        mend="Take the instruction-tuned model, or save a chat template with its processor",
    )
