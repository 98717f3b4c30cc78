"""The forms in which datasets name images."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote

from vlsi_cache.data.images import ImageRef, is_known_image
from vlsi_cache.data.reading.context import RowContext, is_given
from vlsi_cache.errors import DataError, excerpt

__all__ = ["SOURCE_KEYS", "image_ref", "is_image_file", "names_image"]

SOURCE_KEYS = ("path", "image", "url", "image_url", "data", "base64", "bytes", "source")
"""Keys under which a mapping names an image."""

_BASE64: Final = re.compile(r"[A-Za-z0-9+/_\s-]{40,}={0,2}\s*")
_STANDARD: Final = str.maketrans("-_", "+/")
"""From the alphabet of URLs to the standard one."""
_MOST_NAME_BYTES: Final = 255
"""NAME_MAX of Linux and of macOS, per name inside a path."""
_MOST_PATH_BYTES: Final = 4096
"""PATH_MAX of Linux."""


def names_image(source: object) -> bool:
    """Whether a field names an image. Empty fields do not, nor mappings without a source."""
    if isinstance(source, Mapping):
        return any(names_image(source.get(key)) for key in SOURCE_KEYS)
    return is_given(source)


def image_ref(source: object, context: RowContext) -> ImageRef:
    """The image that a dataset's field names.

    Args:
        source: a path, a ``file:`` URL, a ``data:`` URI, base64 text, encoded bytes, or a mapping
            with one of these under ``path``, ``image``, ``url``, ``image_url``, ``data``,
            ``base64`` (both base64 text) or ``bytes``, as `datasets.Image` stores it, or under
            ``source``, as Anthropic's messages have it.
        context: the row. A relative path starts from its folder.

    Raises:
        DataError: the field has none of these forms, names a remote image, or is not base64.
    """
    if isinstance(source, bytes) and source:
        return _embedded(source, context)
    if isinstance(source, str) and source:
        return _from_text(source, context)
    if isinstance(source, Mapping):
        return _from_mapping(source, context)
    raise context.error(
        "image field names no image",
        expected="a path, a data URI, bytes, or a mapping with path, url, data or bytes",
        found=excerpt(repr(source)),
    )


def _from_mapping(source: Mapping[str, object], context: RowContext) -> ImageRef:
    # Arrow fills the keys of other rows with None. datasets keeps a bare name beside the bytes.
    filled = {key: source[key] for key in SOURCE_KEYS if source.get(key)}
    data = filled.pop("bytes", None)
    if data:
        return image_ref(data, context)
    for key in ("data", "base64"):
        text = filled.get(key)
        if isinstance(text, str) and not _is_data_uri(text):
            return _from_base64(text, context)
    if not filled:
        raise context.error(
            "image part names no image",
            expected="one of " + ", ".join(SOURCE_KEYS),
            found="keys " + (", ".join(sorted(map(str, source))) or "none"),
        )
    return _from_named(_local(filled), context)


def _local(filled: dict[str, object]) -> dict[str, object]:
    """The fields that name an image here. Beside others, an address or a text of origin is a note.

    COCO's records name a file, and the address that it came from.
    """
    here = {key: value for key, value in filled.items() if not _is_remote(value)} or filled
    named = {
        key: value for key, value in here.items() if key != "source" or isinstance(value, Mapping)
    }
    return named or here


def _is_remote(value: object) -> bool:
    if isinstance(value, Mapping):
        inner = [value[key] for key in SOURCE_KEYS if value.get(key)]
        return bool(inner) and all(map(_is_remote, inner))
    return isinstance(value, str) and "://" in value[:9] and not value.startswith("file:")


def _from_named(filled: Mapping[str, object], context: RowContext) -> ImageRef:
    """The one image that all of the fields name."""
    (first, value), *others = filled.items()
    image = image_ref(value, context)
    for key, other in others:
        if other != value and not _is_same(image, image_ref(other, context)):
            raise context.error(
                f"{first} and {key} name different images",
                found=" and ".join(excerpt(str(named)) for named in (value, other)),
                mend="Keep one of them",
            )
    return image


def _is_same(image: ImageRef, other: ImageRef) -> bool:
    if image.path is None or other.path is None:
        return image.data == other.data and image.path == other.path
    return image.path.resolve() == other.path.resolve()


def is_image_file(text: str, context: RowContext) -> bool:
    """Whether a text names a file that exists, as the path of an image.

    Args:
        text: what a column holds.
        context: the row. A relative path starts from its folder.
    """
    if _is_remote(text):
        return False
    try:
        return image_ref(text, context).exists()
    except DataError:
        return False


def _from_text(text: str, context: RowContext) -> ImageRef:
    if _is_data_uri(text):
        header, _, payload = text.partition(",")
        if not header.lower().endswith(";base64"):
            raise context.error(
                "data URI of an image is not base64",
                expected="data:image/…;base64,…",
                found=excerpt(text),
            )
        return _from_base64(payload, context)
    if text.startswith("file:"):
        return _from_path(_path_of_url(text, context), context)
    if "://" in text:
        raise context.error(
            "image is remote",
            found=excerpt(text),
            mend="Download the images once and name them by path",
        )
    return _from_bare_base64(text, context) or _from_path(text, context)


def _is_data_uri(text: str) -> bool:
    return text[:5].lower() == "data:"


def _path_of_url(url: str, context: RowContext) -> str:
    rest = url.removeprefix("file:")
    if not rest.startswith("//"):
        return unquote(rest)
    host, slash, path = rest[2:].partition("/")
    if host not in ("", "localhost"):
        raise context.error(
            "image is on another machine",
            expected="file:///path, with three slashes",
            found=excerpt(url),
            mend="Copy the images to this machine and name them by path",
        )
    return unquote(slash + path)


def _from_path(text: str, context: RowContext) -> ImageRef:
    if not _may_be_path(text):
        raise context.error(
            "image is neither a path nor base64 of an image",
            expected="a path, a data URI or base64 text",
            found=f"{len(text):,} characters, {excerpt(text)!r}",
        )
    # Path's own expanduser raises for a user that is not there. Then the name is meant as it is.
    home = os.path.expanduser(text)  # noqa: PTH111
    return ImageRef(path=context.folder / home, max_pixels=context.settings.max_pixels)


def _may_be_path(text: str) -> bool:
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError:
        return False
    longest = max(map(len, encoded.split(b"/")))
    return longest <= _MOST_NAME_BYTES and len(encoded) <= _MOST_PATH_BYTES and b"\0" not in encoded


def _from_bare_base64(text: str, context: RowContext) -> ImageRef | None:
    """The image, if the text is the base64 of one. It has no dot, which most names have."""
    if not _BASE64.fullmatch(text):
        return None
    try:
        data = _decode(text)
    except (binascii.Error, ValueError):
        return None
    return _embedded(data, context) if is_known_image(data) else None


def _decode(text: str) -> bytes:
    """The bytes of base64 in either alphabet, with or without the signs that fill its end.

    Raises:
        ValueError: the text is not base64.
    """
    compact = "".join(text.split()).translate(_STANDARD).rstrip("=")
    return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)


def _from_base64(text: str, context: RowContext) -> ImageRef:
    try:
        data = _decode(text)
    except (binascii.Error, ValueError) as error:
        raise context.error("embedded image is not base64", found=excerpt(text)) from error
    if not data:
        raise context.error("embedded image is empty")
    return _embedded(data, context)


def _embedded(data: bytes, context: RowContext) -> ImageRef:
    return ImageRef(data=data, max_pixels=context.settings.max_pixels)
