"""Pictures by their sizes alone, which decide how many tokens they become."""

from __future__ import annotations

import io
from dataclasses import dataclass, fields, replace
from typing import Final

from PIL import ExifTags, Image

from vlsi_cache.data import Conversation, ImagePart, ImageRef
from vlsi_cache.data.images import PROGRAMS

__all__ = ["with_blank_pictures"]

_SIDEWAYS: Final = 5
"""From this EXIF orientation on, width and height change places."""
_MOST_PIXELS: Final = 2**26
"""Larger pictures are decoded, so that the limits of decoding hold for them."""


def with_blank_pictures(conversation: Conversation) -> Conversation:
    """The conversation with blank pictures of the same sizes. Only headers are read for them."""
    messages = tuple(
        replace(
            message,
            parts=tuple(
                ImagePart(_blank(part.image)) if isinstance(part, ImagePart) else part
                for part in message.parts
            ),
        )
        for message in conversation.messages
    )
    return replace(conversation, messages=messages)


def _blank(image: ImageRef) -> _BlankImage:
    return _BlankImage(**{field.name: getattr(image, field.name) for field in fields(image)})


@dataclass(frozen=True, slots=True)
class _BlankImage(ImageRef):
    """An image that gives a blank one of its size. One that has no header to read is decoded."""

    def load(self, *, where: str | None = None) -> Image.Image:
        try:
            with Image.open(io.BytesIO(self.read(where=where))) as image:
                width, height = image.size
                # The base class's own, because a PNG's would decode the picture.
                orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
        except (OSError, SyntaxError, ValueError, ArithmeticError, Image.DecompressionBombError):
            return ImageRef.load(self, where=where)
        if width * height > min(_MOST_PIXELS, self.max_pixels) or image.format in PROGRAMS:
            return ImageRef.load(self, where=where)
        is_sideways = isinstance(orientation, int) and orientation >= _SIDEWAYS
        return Image.new("RGB", (height, width) if is_sideways else (width, height))
