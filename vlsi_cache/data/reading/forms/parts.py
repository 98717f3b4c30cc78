"""A turn's content to texts, images and open places for images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vlsi_cache.data.conversation import ImagePart, TextPart
from vlsi_cache.data.reading.context import RowContext, is_given
from vlsi_cache.data.reading.forms.imagefields import SOURCE_KEYS, image_ref, names_image
from vlsi_cache.data.reading.forms.weights import validate_unweighted
from vlsi_cache.errors import excerpt

__all__ = ["IMAGE_TAG", "OpenImage", "Part", "read_content", "split_tags"]

IMAGE_TAG = "<image>"
"""Placeholder of an image in texts."""

_TEXT_TYPES = ("text", "input_text", "output_text")
_IMAGE_TYPES = ("image", "image_url", "input_image")
_SOURCE_FIELDS = frozenset({*SOURCE_KEYS, "type", "media_type"})
_CALL_TYPES = ("tool_use", "tool_result")
_MEDIA_WORDS = ("video", "audio", "sound", "file", "document")
_SIZES = ("max_pixels", "min_pixels", "resized_height", "resized_width")


@dataclass(frozen=True, slots=True)
class OpenImage:
    """A place for an image from the row's own column."""

    index: int | None = None
    """The image's 0-based number in the column. None is the next one in order."""
    keys: tuple[str, ...] = ()
    """What else the part holds, for errors."""


Part = TextPart | ImagePart | OpenImage


def read_content(content: object, role: str, path: str, context: RowContext) -> list[Part] | None:
    """The parts of a turn's content. None means that it is neither text nor a list of parts.

    Tags stay in the texts, because all of a row decides whether they are tags.

    Args:
        content: the content.
        role: the turn's role.
        path: name of the content, when its fields are reported.
        context: the row.

    Raises:
        DataError: a part is unknown, or names no image.
    """
    if isinstance(content, str):
        return [TextPart(content)]
    if isinstance(content, Mapping) and content.get("type") in (*_TEXT_TYPES, *_IMAGE_TYPES):
        content = [content]
    if isinstance(content, list):
        return [_part(part, role, path, context) for part in content]
    return None


def split_tags(parts: Iterable[Part]) -> list[Part]:
    """Split texts with ``<image>`` tags into parts.

    The newlines beside a tag go with it. LLaVA's data writes them, and the chat templates write
    them again.
    """
    split: list[Part] = []
    for part in parts:
        split += _split(part.text) if isinstance(part, TextPart) else [part]
    return split


def _split(text: str) -> list[Part]:
    parts: list[Part] = []
    pieces = text.split(IMAGE_TAG)
    for index, piece in enumerate(pieces):
        trimmed = piece.lstrip("\n") if index > 0 else piece
        trimmed = trimmed.rstrip("\n") if index < len(pieces) - 1 else trimmed
        if index > 0:
            parts.append(OpenImage())
        if trimmed:
            parts.append(TextPart(trimmed))
    return parts


def _part(part: object, role: str, path: str, context: RowContext) -> Part:
    if isinstance(part, str):
        return TextPart(part)
    if isinstance(part, Mapping):
        kind = part.get("type") or _kind(part)
        if kind in _TEXT_TYPES and isinstance(part.get("text"), str):
            _validate_alone(part, ("image", "image_url"), context)
            validate_unweighted(part, role, context)
            context.note_unread(part, {"type", "text"}, f"{path}[].")
            return TextPart(part["text"])
        if kind in _IMAGE_TYPES:
            _validate_alone(part, ("text",), context)
            return _image(part, path, context)
    raise context.error(
        "unknown part of a message",
        expected='{"type": "text", "text": …} or {"type": "image", "path": …}',
        found=excerpt(repr(part)),
        mend=_advice(part),
    )


def _advice(part: object) -> str | None:
    """What mends a part of another kind."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in _CALL_TYPES:
        return "Write calls into tool_calls of the turn, and what tools say as turns of role tool"
    if kind == "refusal":
        return "Write its text as a part of type text"
    if isinstance(kind, str) and "image" in kind:
        return "Name its type image"
    if isinstance(kind, str) and any(word in kind for word in _MEDIA_WORDS):
        return "Videos, sounds and files are not read: drop the sample, or write it as images"
    return None


def _kind(part: Mapping[str, Any]) -> str | None:
    """The type of a part that does not name it: of the one field that it has."""
    given = [name for name in ("text", "image", "image_url") if is_given(part.get(name))]
    return given[0] if len(given) == 1 else None


def _validate_alone(part: Mapping[str, Any], others: Iterable[str], context: RowContext) -> None:
    for name in others:
        if is_given(part.get(name)):
            raise context.error(
                f"a part of type {part.get('type') or _kind(part)} also holds {name}",
                found=excerpt(repr(part)),
                mend="Write a part for each text and each image",
            )


def _image(part: Mapping[str, Any], path: str, context: RowContext) -> Part:
    for name, fields in {"": part, **part}.items():
        if isinstance(fields, Mapping):
            _validate_sizes(fields, context)
            known = {*SOURCE_KEYS, "type", "text", "index"} if fields is part else _SOURCE_FIELDS
            context.note_unread(fields, known, f"{path}[].{name}." if name else f"{path}[].")
    index = part.get("index")
    if index is not None and (isinstance(index, bool) or not isinstance(index, int) or index < 0):
        raise context.error("index of an image part is not a number from 0", found=repr(index))
    named = {key: part[key] for key in SOURCE_KEYS if names_image(part.get(key))}
    if named:
        return ImagePart(image_ref(named, context))
    others = sorted(
        str(key) for key in part if key not in ("type", "index") and is_given(part[key])
    )
    return OpenImage(index, tuple(others))


def _validate_sizes(fields: Mapping[str, Any], context: RowContext) -> None:
    sized = [name for name in _SIZES if is_given(fields.get(name))]
    if sized:
        raise context.error(
            f"an image part sets {', '.join(sized)}, which is not read",
            mend="Take it out. Sizes are set once, in teacher.processor and student.processor",
        )
