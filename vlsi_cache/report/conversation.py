"""The conversation of a recorded sample, in words and small pictures."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from typing import Final

from PIL import Image

from vlsi_cache.data.conversation import Conversation, Message, TextPart
from vlsi_cache.data.images import ImageRef
from vlsi_cache.errors import CacheMismatchError
from vlsi_cache.report.sample import Picture, TurnView
from vlsi_cache.store import Cache

__all__ = ["conversation_view"]

_SIDE: Final = 320
"""Most pixels of a side of a small copy."""
_QUALITY: Final = 70
_MOST_PICTURES: Final = 8
"""Pictures of a sample that are copied. Others are named."""


def conversation_view(
    data: Sequence[Conversation], cache: Cache, sample_id: str | int
) -> tuple[TurnView, ...] | None:
    """Return the turns of a recorded sample, or None if the teacher could not read it.

    Args:
        data: the conversations that the cache records.
        cache: the cache.
        sample_id: name, key or index of the sample.

    Raises:
        CacheError: no published shard holds the sample.
        CacheMismatchError: the data is not what the cache records.
        DataError: the row or an image of it cannot be read.
    """
    record = cache[sample_id]
    if record.failure is not None:
        return None
    index = cache.index_of(sample_id) if isinstance(sample_id, str) else sample_id
    if index >= len(data):
        raise _mismatch(record.sample_id, f"a sample of index {index:,}", f"{len(data):,} samples")
    conversation = data[index]
    if conversation.key() != record.key:
        found = f"content {conversation.key()[:12]} in {conversation.origin}"
        raise _mismatch(record.sample_id, f"content {record.key[:12]}", found)
    pictures = iter(range(_MOST_PICTURES))
    return tuple(
        TurnView(role=message.role, parts=tuple(_parts(message, conversation.origin, pictures)))
        for message in conversation.messages
    )


def _parts(message: Message, origin: str, pictures: Iterator[int]) -> Iterator[str | Picture]:
    for part in message.parts:
        if isinstance(part, TextPart):
            yield part.text
        elif next(pictures, None) is not None:
            yield _picture(part.image, origin)
        else:
            yield "[an image that is not shown]"
    for name, value in message.fields.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield f"[{name}] {text}"


def _picture(image: ImageRef, origin: str) -> Picture:
    decoded = image.load(where=origin)
    width, height = decoded.size
    decoded.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    decoded.save(buffer, "JPEG", quality=_QUALITY)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(width=width, height=height, jpeg_base64=encoded)


def _mismatch(sample_id: str, expected: str, found: str) -> CacheMismatchError:
    return CacheMismatchError(
        "the data is not what the cache records",
        where=f"sample {sample_id!r}",
        expected=expected,
        found=found,
        mend="Give the data and the limit of the run that wrote the cache",
    )
