"""The forms in which datasets name images."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vlsi_cache.data.images import ImageRef
from vlsi_cache.errors import DataError, excerpt

__all__ = ["image_ref"]

_SOURCE_KEYS = ("path", "image", "url", "image_url", "data", "base64", "bytes")


def image_ref(source: object, folder: Path, *, where: str) -> ImageRef:
    """The image that a dataset's field names.

    Args:
        source: a path (relative to ``folder``), a ``file:`` URL, a ``data:`` URI, encoded bytes, or
            a mapping with one of these under ``path``, ``image``, ``url``, ``image_url``, ``data``,
            ``base64`` (both base64 text) or ``bytes``, as `datasets.Image` stores it.
        folder: folder that relative paths start from.
        where: the sample, for errors.

    Raises:
        DataError: the field has none of these forms, names a remote image, or is not base64.
    """
    if isinstance(source, bytes) and source:
        return ImageRef(data=source)
    if isinstance(source, str) and source:
        return _from_text(source, folder, where)
    if isinstance(source, Mapping):
        return _from_mapping(source, folder, where)
    raise DataError(
        "image field names no image",
        where=where,
        expected="a path, a data URI, bytes, or a mapping with path, url, data or bytes",
        found=excerpt(repr(source)),
    )


def _from_mapping(source: Mapping[str, object], folder: Path, where: str) -> ImageRef:
    # Arrow fills the keys of other rows with None. datasets keeps a bare name beside the bytes.
    filled = {key: source[key] for key in _SOURCE_KEYS if source.get(key)}
    data = filled.pop("bytes", None)
    if data:
        return image_ref(data, folder, where=where)
    for key in ("data", "base64"):
        text = filled.get(key)
        if isinstance(text, str) and not text.startswith("data:"):
            return _from_base64(text, where)
    for value in filled.values():
        return image_ref(value, folder, where=where)
    raise DataError(
        "image part names no image",
        where=where,
        expected="one of " + ", ".join(_SOURCE_KEYS),
        found="keys " + (", ".join(sorted(map(str, source))) or "none"),
    )


def _from_text(text: str, folder: Path, where: str) -> ImageRef:
    if text.startswith("data:"):
        header, _, payload = text.partition(",")
        if not header.endswith(";base64"):
            raise DataError(
                "data URI of an image is not base64",
                where=where,
                expected="data:image/…;base64,…",
                found=excerpt(text),
            )
        return _from_base64(payload, where)
    if text.startswith("file:"):
        return ImageRef(path=Path(unquote(urlsplit(text).path)))
    if "://" in text:
        raise DataError(
            "image is remote",
            where=where,
            found=excerpt(text),
            mend="Download the images once and name them by path",
        )
    return ImageRef(path=folder / Path(text).expanduser())


def _from_base64(text: str, where: str) -> ImageRef:
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError("embedded image is not base64", where=where, found=excerpt(text)) from error
    if not data:
        raise DataError("embedded image is empty", where=where)
    return ImageRef(data=data)
