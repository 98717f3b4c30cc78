"""From a dataset's raw row to a `Conversation`, or to an error that names the row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlsi_cache.data.conversation import Conversation, ImagePart, Message, TextPart
from vlsi_cache.data.images import ImageRef
from vlsi_cache.data.reading.imagefields import image_ref
from vlsi_cache.errors import DataError, excerpt

__all__ = ["IMAGE_TAG", "parse_row"]

IMAGE_TAG = "<image>"
"""Placeholder of an image in LLaVA's ``value`` strings, and in strings beside ``images``."""

_ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "human": "user",
    "gpt": "assistant",
}

Parts = list[TextPart | ImagePart | None]
"""A message's parts. None is an image from the row's own column."""


def parse_row(row: object, number: int, *, folder: Path, origin: str) -> Conversation:
    """Turn one row into a conversation.

    A row has one of two forms. ``messages`` has `role` and `content`, a string or a list of parts.
    LLaVA's ``conversations`` has `from` and `value`, a string with ``<image>`` tags. Images stand
    inside the parts, or in the row's ``images`` or ``image``, in the order of their placeholders.

    Args:
        row: the decoded JSON object, or a row of a `datasets.Dataset` with undecoded images.
        number: 0-based number of the row. It is the sample's id if the row has none.
        folder: folder that relative image paths start from.
        origin: name of the row, for errors.

    Raises:
        DataError: the row is not a sound conversation. Pixels are not read.
    """
    if not isinstance(row, Mapping):
        raise DataError("row is not a JSON object", where=origin, found=type(row).__name__)
    turns = _turns(row, origin)
    images = _row_images(row, folder, origin)
    llava = "conversations" in row and row.get("messages") is None
    has_placeholders = any(_structured_placeholders(turn.get("content")) for turn in turns)
    tagged = llava or (bool(images) and not has_placeholders)
    messages = [_message(turn, folder, origin, tagged=tagged, llava=llava) for turn in turns]
    filled = _fill_images(messages, images, origin)
    _validate_answers(filled, origin)
    identity = row.get("id")
    return Conversation(str(number if identity is None else identity), filled, origin)


def _turns(row: Mapping[str, Any], origin: str) -> Sequence[Mapping[str, Any]]:
    for key in ("messages", "conversations"):
        turns = row.get(key)
        if turns is None:
            continue
        if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
            raise DataError(
                f"{key} is not a list of turns", where=origin, found=excerpt(repr(turns))
            )
        if not turns:
            raise DataError(f"{key} is empty", where=origin, mend="Drop the sample")
        return turns
    raise DataError(
        "row is not a conversation",
        where=origin,
        expected="a field messages (role, content) or conversations (from, value)",
        found="fields " + (", ".join(map(str, row)) or "none"),
    )


def _row_images(row: Mapping[str, Any], folder: Path, origin: str) -> list[ImageRef]:
    images: list[ImageRef] = []
    for key in ("images", "image"):
        value = row.get(key)
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        images += [image_ref(source, folder, where=origin) for source in values]
    return images


def _message(
    turn: Mapping[str, Any], folder: Path, origin: str, *, tagged: bool, llava: bool
) -> tuple[str, Parts]:
    name = turn.get("from", turn.get("role")) if llava else turn.get("role", turn.get("from"))
    role = _ROLES.get(str(name))
    if role is None:
        raise DataError(
            "unknown role",
            where=origin,
            expected="system, user or assistant (human or gpt in conversations)",
            found=excerpt(repr(name)),
            mend="Rename the role, or drop the turn",
        )
    keys = ("value", "content") if llava else ("content", "value")
    content = next((turn[key] for key in keys if turn.get(key) is not None), None)
    if isinstance(content, str):
        return role, _split_tags(content) if tagged else [TextPart(content)]
    if isinstance(content, list):
        parts: Parts = []
        for part in content:
            parts += _parts(part, folder, origin, tagged=tagged)
        return role, parts
    if content is None and role == "assistant":
        return role, []  # refused below, as an empty response
    raise DataError(
        f"content of the {role}'s turn is neither text nor a list of parts",
        where=origin,
        found=excerpt(repr(content)),
    )


def _parts(part: object, folder: Path, origin: str, *, tagged: bool) -> Parts:
    text = part
    if isinstance(part, Mapping):
        kind = part.get("type")
        text = part.get("text") if kind == "text" else None
        if kind in ("image", "image_url"):
            sources = {key: value for key, value in part.items() if key not in ("type", "text")}
            if not any(sources.values()):
                return [None]
            return [ImagePart(image_ref(sources, folder, where=origin))]
    if isinstance(text, str):
        return _split_tags(text) if tagged else [TextPart(text)]
    raise DataError(
        "unknown part of a message",
        where=origin,
        expected='{"type": "text", "text": …} or {"type": "image", "path": …}',
        found=excerpt(repr(part)),
    )


def _split_tags(text: str) -> Parts:
    """Split a text with ``<image>`` tags into parts.

    The newlines beside a tag go with it. LLaVA's data writes them, and the chat templates write
    them again.
    """
    parts: Parts = []
    pieces = text.split(IMAGE_TAG)
    for index, piece in enumerate(pieces):
        trimmed = piece.lstrip("\n") if index > 0 else piece
        trimmed = trimmed.rstrip("\n") if index < len(pieces) - 1 else trimmed
        if index > 0:
            parts.append(None)
        if trimmed:
            parts.append(TextPart(trimmed))
    return parts


def _structured_placeholders(content: object) -> bool:
    return isinstance(content, list) and any(
        isinstance(part, Mapping) and part.get("type") in ("image", "image_url") for part in content
    )


def _fill_images(
    messages: Sequence[tuple[str, Parts]], images: Sequence[ImageRef], origin: str
) -> tuple[Message, ...]:
    num_open = sum(part is None for _, parts in messages for part in parts)
    if num_open != len(images):
        raise DataError(
            "placeholders and images differ in number",
            where=origin,
            expected=f"{num_open} images, one for each {IMAGE_TAG} tag or image part",
            found=f"{len(images)} in the row's image fields",
            mend="Give every image its placeholder and every placeholder its image",
        )
    remaining = iter(images)
    return tuple(
        Message(
            role,
            tuple(ImagePart(next(remaining)) if part is None else part for part in parts),
        )
        for role, parts in messages
    )


def _validate_answers(messages: Sequence[Message], origin: str) -> None:
    answers = [message for message in messages if message.role == "assistant"]
    if not answers:
        raise DataError("no turn is the assistant's", where=origin, mend="Drop the sample")
    for answer in answers:
        if any(isinstance(part, ImagePart) for part in answer.parts):
            raise DataError(
                "the assistant's turn holds an image",
                where=origin,
                mend="Move the image to a user's turn: answers are text",
            )
        if not answer.text.strip():
            raise DataError(
                "response is empty", where=origin, mend="Drop the turn, or write the answer"
            )
