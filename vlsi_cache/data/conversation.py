"""Conversations with images, as values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from vlsi_cache.data.images import ImageRef

__all__ = [
    "RESERVED_VARIABLES",
    "Conversation",
    "ImagePart",
    "Message",
    "TextPart",
    "message_images",
]

RESERVED_VARIABLES: Final = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversations",
        "messages",
        "return_assistant_tokens_mask",
        "tokenize",
        "tools",
    }
)
"""Variables that the renderer itself gives to a template."""


@dataclass(frozen=True, slots=True)
class TextPart:
    """A run of text inside a message."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image inside a message."""

    image: ImageRef


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of one side."""

    role: str
    """``system``, ``developer``, ``user``, ``assistant`` or ``tool``."""
    parts: tuple[TextPart | ImagePart, ...]
    """Texts and images in the order in which they are read."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What else the template reads of the turn, as JSON values: ``tool_calls``,
    ``reasoning_content``, ``name``, ``tool_call_id``."""
    learned: bool = True
    """Whether an assistant's turn is part of the responses."""

    @property
    def text(self) -> str:
        """All texts of the message, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


@dataclass(frozen=True, slots=True)
class Conversation:
    """One sample of a dataset."""

    sample_id: str
    """The row's ``id``, or its 0-based number."""
    messages: tuple[Message, ...]
    """The turns. At least one is the assistant's."""
    origin: str
    """Name of the row in errors, such as ``train.jsonl:12``."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Schemas of the tools that the assistant may call, as JSON values."""
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    """Variables for the chat template, such as ``enable_thinking``, as JSON values."""
    templated: bool = True
    """Whether the chat template renders the messages. Otherwise the sample is plain text for a base
    model: one assistant's turn, and every token but the first is a response."""
    continues: bool = False
    """Whether the answer goes on with the prompt as text. A model without a chat template then
    reads the two as they are. A template renders them as turns."""

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """All images in the order in which they are read."""
        return message_images(self.messages)

    def key(self) -> str:
        """Hex SHA-256 over all that decides the tokens. The id and the origin do not count.

        Raises:
            DataError: an image file cannot be read.
        """
        content: list[Any] = [_message_key(message, self.origin) for message in self.messages]
        extras = {
            "tools": list(self.tools),
            "template_variables": dict(self.template_variables),
            "plain": not self.templated,
        }
        # What a conversation does not have leaves its key as it was before there was such a thing.
        given = {name: value for name, value in extras.items() if value}
        content += [given] if given else []
        # In JSON, ["a", "b"] and ["ab"] differ. In a plain concatenation they would not.
        return hashlib.sha256(_as_json(content).encode()).hexdigest()


def message_images(messages: Sequence[Message]) -> tuple[ImageRef, ...]:
    """All images of the messages in the order in which they are read."""
    return tuple(
        part.image for message in messages for part in message.parts if isinstance(part, ImagePart)
    )


def _message_key(message: Message, where: str) -> list[Any]:
    key: list[Any] = [message.role, [_part_key(part, where) for part in message.parts]]
    key += [dict(message.fields)] if message.fields else []
    return key if message.learned else [*key, {"learned": False}]


def _as_json(content: list[Any]) -> str:
    """JSON in the order in which the keys were given: templates write them in that order."""
    return json.dumps(content, separators=(",", ":"))


def _part_key(part: TextPart | ImagePart, where: str) -> dict[str, str]:
    if isinstance(part, TextPart):
        return {"text": part.text}
    return {"image": part.image.digest(where=where)}
