"""Images by path or by bytes, and the forms in which datasets name them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from PIL import Image, ImageOps, UnidentifiedImageError

from vlsi_cache.errors import DataError

__all__ = ["ImageRef", "image_ref"]

_SOURCE_KEYS = ("path", "image", "url", "image_url", "data", "base64", "bytes")
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An encoded image, either in a file or in memory; exactly one of the two is set."""

    path: Path | None = None
    """File that holds the image."""
    data: bytes | None = None
    """The encoded file's content itself."""

    def __post_init__(self) -> None:
        if (self.path is None) == (self.data is None):
            raise ValueError("an ImageRef has either a path or data")

    @property
    def name(self) -> str:
        """What error messages call the image."""
        return "embedded image" if self.path is None else str(self.path)

    def exists(self) -> bool:
        """Whether there is something to read; nothing is decoded."""
        return self.path is None or self.path.is_file()

    def read(self, *, where: str | None = None) -> bytes:
        """The encoded bytes.

        Raises:
            DataError: the file is missing or cannot be read.
        """
        if self.path is None:
            assert self.data is not None
            return self.data
        try:
            return self.path.read_bytes()
        except FileNotFoundError as error:
            raise missing_image(self, where) from error
        except OSError as error:
            raise DataError(
                "image file cannot be read",
                where=where,
                found=f"{self.name} ({error.strerror or error})",
                mend="Check that the path is a readable file",
            ) from error

    def digest(self, *, where: str | None = None) -> str:
        """Hex SHA-256 of the encoded bytes.

        Raises:
            DataError: the file is missing or cannot be read.
        """
        return hashlib.sha256(self.read(where=where)).hexdigest()

    def load(self, *, where: str | None = None) -> Image.Image:
        """The decoded image, turned upright by its EXIF orientation, in RGB.

        Raises:
            DataError: the file is missing, cannot be read, or is no sound image.
        """
        data = self.read(where=where)
        try:
            with Image.open(io.BytesIO(data)) as image:
                # The same two steps as transformers' own `load_image`.
                return ImageOps.exif_transpose(image).convert("RGB")
        except UnidentifiedImageError as error:
            raise _unreadable(self, where, f"{len(data)} bytes of no known image format") from error
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise _unreadable(self, where, str(error)) from error


def missing_image(image: ImageRef, where: str | None) -> DataError:
    """The error that names an image file that is not there."""
    return DataError(
        "image file is missing",
        where=where,
        expected=image.name,
        mend="Restore the file, or give its path relative to the data file",
    )


def image_ref(source: object, folder: Path, *, where: str) -> ImageRef:
    """The image that a dataset's field names.

    Args:
        source: a path (relative to ``folder``), a ``file:`` URL, a ``data:`` URI, encoded bytes, or
            a mapping with one of these under ``path``, ``image``, ``url``, ``image_url``, ``data``,
            ``base64`` (both base64 text) or ``bytes``, as `datasets.Image` stores it.
        folder: what relative paths start from.
        where: the sample, for error messages.

    Raises:
        DataError: the field has none of these forms, names a remote image, or is no base64.
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
        found=repr(source)[:_SHOWN_CHARACTERS],
    )


def _from_mapping(source: Mapping[str, object], folder: Path, where: str) -> ImageRef:
    # Arrow fills the keys of other rows with None; datasets keeps a bare name beside the bytes.
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
                found=text[:_SHOWN_CHARACTERS],
            )
        return _from_base64(payload, where)
    if text.startswith("file:"):
        return ImageRef(path=Path(unquote(urlsplit(text).path)))
    if "://" in text:
        raise DataError(
            "image is remote",
            where=where,
            found=text[:_SHOWN_CHARACTERS],
            mend="Download the images once and name them by path",
        )
    return ImageRef(path=folder / Path(text).expanduser())


def _from_base64(text: str, where: str) -> ImageRef:
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(
            "embedded image is not base64", where=where, found=text[:_SHOWN_CHARACTERS]
        ) from error
    if not data:
        raise DataError("embedded image is empty", where=where)
    return ImageRef(data=data)


def _unreadable(image: ImageRef, where: str | None, found: str) -> DataError:
    return DataError(
        f"image cannot be decoded: {image.name}",
        where=where,
        found=found,
        mend="Replace the file or drop the sample",
    )
