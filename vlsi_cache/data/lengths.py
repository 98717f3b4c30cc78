"""About how long a conversation is: from its text, and its images' headers."""

from __future__ import annotations

import io
import json
import warnings
from typing import Final

from PIL import Image

from vlsi_cache.data.conversation import Conversation
from vlsi_cache.data.images import ImageRef

__all__ = ["rough_length"]

_BYTES_PER_TOKEN: Final = 4
"""English text of today's tokenizers. Scripts of three bytes to a character come near it too."""
_PIXELS_PER_TOKEN: Final = 28 * 28
"""Qwen2-VL's, which many families are near."""
_IMAGE_TOKENS: Final = (64, 4096)
"""Least and most tokens that an image counts as."""


def rough_length(conversation: Conversation) -> int:
    """Return about how many tokens a conversation has. Pixels are not decoded.

    An image that cannot be opened counts as a small one. Whoever encodes it reports it.
    """
    text = sum(len(message.text.encode()) for message in conversation.messages)
    text += sum(len(json.dumps(dict(one.fields))) for one in conversation.messages if one.fields)
    text += sum(len(json.dumps(dict(tool))) for tool in conversation.tools)
    return text // _BYTES_PER_TOKEN + sum(map(_image_tokens, conversation.images))


def _image_tokens(image: ImageRef) -> int:
    least, most = _IMAGE_TOKENS
    try:
        # only a regular file: whoever opens a pipe waits for its writer
        if image.path is not None and not image.path.is_file():
            return least
        source = image.path or io.BytesIO(image.data or b"")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(source) as opened:
                pixels = opened.width * opened.height
    except Exception:  # whatever Pillow's decoders raise on broken bytes
        return least
    return min(max(pixels // _PIXELS_PER_TOKEN, least), most)
