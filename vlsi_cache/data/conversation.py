"""Conversations with images, as values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from vlsi_cache.data.images import ImageRef

__all__ = ["Conversation", "ImagePart", "Message", "TextPart", "message_images"]


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
    """``system``, ``user`` or ``assistant``."""
    parts: tuple[TextPart | ImagePart, ...]
    """Texts and images in the order in which they are read."""

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

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """All images in the order in which they are read."""
        return message_images(self.messages)

    def key(self) -> str:
        """Hex SHA-256 over roles, texts and image bytes. The id and the origin do not count.

        Raises:
            DataError: an image file cannot be read.
        """
        content = [
            [message.role, [_part_key(part, self.origin) for part in message.parts]]
            for message in self.messages
        ]
        # In JSON, ["a", "b"] and ["ab"] differ. In a plain concatenation they would not.
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def message_images(messages: Sequence[Message]) -> tuple[ImageRef, ...]:
    """All images of the messages in the order in which they are read."""
    return tuple(
        part.image for message in messages for part in message.parts if isinstance(part, ImagePart)
    )


def _part_key(part: TextPart | ImagePart, where: str) -> dict[str, str]:
    if isinstance(part, TextPart):
        return {"text": part.text}
    return {"image": part.image.digest(where=where)}
