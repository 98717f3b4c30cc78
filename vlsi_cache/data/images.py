"""Images by path or by bytes."""

from __future__ import annotations

import hashlib
import io
import stat
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import numpy as np
from PIL import Image, UnidentifiedImageError

from vlsi_cache.contents import recognise
from vlsi_cache.errors import DataError, first_line
from vlsi_cache.limits import raise_limit

__all__ = ["MAX_PIXELS", "ImageRef", "is_known_image", "missing_image"]

MAX_PIXELS: Final = 89_478_485
"""Most pixels of an image by default: Pillow's own ``MAX_IMAGE_PIXELS``, a quarter of a gibibyte in
RGB."""

_BEGINNINGS: Final = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"GIF8",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"\0\0\0\x0cjP  \r\n",
)
_BRANDS: Final = (b"avif", b"avis", b"heic", b"heix", b"mif1")
"""Kinds of images among the files that begin with a box ``ftyp``."""
PROGRAMS: Final = {"EPS": "Ghostscript"}
"""Formats that Pillow hands to a program."""
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its EXIF orientation."""
_ORIENTATION: Final = 0x0112


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An encoded image, either in a file or in memory. Exactly one of the two is set."""

    path: Path | None = None
    """File that holds the image."""
    data: bytes | None = None
    """The content of an encoded file."""
    max_pixels: int = field(default=MAX_PIXELS, compare=False)
    """Most pixels that it may decode to. A small file can decode to more than the memory holds."""

    def __post_init__(self) -> None:
        if (self.path is None) == (self.data is None):
            raise ValueError("an ImageRef has either a path or data")

    def location(self, where: str | None) -> str:
        """The name of the image in errors, after the sample that refers to it.

        The rest of an error names no path, so that it is the same on every machine.
        """
        name = "embedded image" if self.path is None else str(self.path)
        return name if where is None else f"{where}, {name}"

    def exists(self) -> bool:
        """Whether there is a file to read. Nothing is decoded."""
        try:
            return self.path is None or self.path.is_file()
        except OSError:  # a folder on the way that may not be searched
            return False

    def read(self, *, where: str | None = None) -> bytes:
        """The encoded bytes.

        Raises:
            DataError: the file is missing or cannot be read.
        """
        if self.path is None:
            assert self.data is not None
            return self.data
        try:
            mode = self.path.stat().st_mode
            # Whoever opens a pipe waits for its writer, and a device may have no end.
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise _unreadable_file(self, where, "a pipe or a device")
            return self.path.read_bytes()
        except FileNotFoundError as error:
            raise missing_image(self, where) from error
        except OSError as error:
            raise_limit(error)
            found = error.strerror or type(error).__name__
            raise _unreadable_file(self, where, found) from error

    def digest(self, *, where: str | None = None) -> str:
        """Hex SHA-256 of the encoded bytes.

        Raises:
            DataError: the file is missing or cannot be read.
        """
        return hashlib.sha256(self.read(where=where)).hexdigest()

    def load(self, *, where: str | None = None) -> Image.Image:
        """The decoded image, turned upright by its EXIF orientation, in RGB.

        Raises:
            DataError: the file is missing, cannot be read, is not a sound image, has too many
                pixels, or has a format that a program would decode.
        """
        data = self.read(where=where)
        try:
            with _opened(data) as image:
                problem = _find_problem(image, self.max_pixels)
                if problem is None:
                    return _upright_rgb(image)
        except Exception as error:  # whatever Pillow's decoders raise on broken bytes
            raise_limit(error)
            found = first_line(error)
            if isinstance(error, UnidentifiedImageError):
                found = _described(data)
            raise _undecodable(self, where, found) from error
        raise _refused(self, where, problem)


_DOCUMENTS: Final = frozenset({"PDF", "an XML document", "text", "gzip", "a zip archive"})
"""What is named in place of an image, beside files that were lost."""


def is_known_image(data: bytes) -> bool:
    """Whether the bytes begin like an image of a common format."""
    if data[4:8] == b"ftyp":
        return data[8:12] in _BRANDS
    return data.startswith(_BEGINNINGS) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def missing_image(image: ImageRef, where: str | None) -> DataError:
    """The error that names a missing image file."""
    return DataError(
        "image file is missing",
        where=image.location(where),
        found=_found_in_place(image.path),
        mend="Restore the file, or give its path relative to the data file or to data.image_root",
    )


def _found_in_place(path: Path | None) -> str | None:
    """What stands at a path without a file, or the file whose name was quoted for an address.

    No path is named, so that the words are the same on every machine.
    """
    try:
        if path is None:
            return None
        if path.is_dir():
            return "a folder"
        if path.is_symlink():
            return "a link to nothing"
        if "%" in path.name and path.with_name(unquote(path.name)).is_file():
            return f"a file {unquote(path.name)}, whose name is quoted here as in an address"
    except (OSError, ValueError):  # a folder on the way that may not be searched, or no name
        pass
    return None


def _described(data: bytes) -> str:
    """What bytes are that are no image."""
    contents = recognise(data, len(data))
    if contents.kind in ("empty", "not the file") or contents.words in _DOCUMENTS:
        return contents.words
    return f"{len(data)} bytes of no known image format"


def _opened(data: bytes) -> Image.Image:
    """The image with its header read. Its pixels are not decoded."""
    with warnings.catch_warnings():
        # The bound is ours, and an error.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data))


def _find_problem(image: Image.Image, max_pixels: int) -> tuple[str, str, str] | None:
    """What speaks against decoding: the problem, what was found, and how to mend it."""
    program = PROGRAMS.get(image.format or "")
    if program is not None:
        return (
            f"image has a format that {program}, a program, would decode",
            str(image.format),
            "Convert it to PNG",
        )
    if image.width * image.height > max_pixels:
        return (
            f"image has more than {max_pixels:,} pixels",
            f"{image.width} × {image.height}",
            "Scale it down, or raise data.max_pixels_per_image",
        )
    return None


def _upright_rgb(image: Image.Image) -> Image.Image:
    image.load()
    # Pillow's exif_transpose also writes the tags again, and fails where one of them is broken.
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    upright = image if turn is None else image.transpose(turn)
    return _to_8_bits(upright, image.format).convert("RGB")


def _to_8_bits(image: Image.Image, kind: str | None) -> Image.Image:
    """Scale grey of more than 8 bits, which Pillow would cut off at 255."""
    if not image.mode.startswith("I") and image.mode != "F":
        return image
    grey = np.asarray(image)
    low, high = float(grey.min()), float(grey.max())
    if image.mode == "F" and np.any(grey != np.floor(grey)):
        raise ValueError(f"grey values from {low:g} to {high:g}, with fractions among them")
    is_16_bit = image.mode.startswith("I;16") or kind in ("PNG", "PPM")
    if not is_16_bit and low >= 0 and high <= 255:
        return image
    if image.mode == "F" or low < 0 or high > 65535:
        raise ValueError(f"grey values from {low:g} to {high:g}, which are neither 8 nor 16 bits")
    # 65535 / 255 is 257. Half of it is added, so that the quotient is the nearest.
    return Image.fromarray(((grey.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _unreadable_file(image: ImageRef, where: str | None, found: str) -> DataError:
    return DataError(
        "image file cannot be read",
        where=image.location(where),
        found=found,
        mend="Check that the path is a readable file",
    )


def _undecodable(image: ImageRef, where: str | None, found: str) -> DataError:
    return DataError(
        "image cannot be decoded",
        where=image.location(where),
        found=found,
        mend="Replace the file or drop the sample",
    )


def _refused(image: ImageRef, where: str | None, problem: tuple[str, str, str]) -> DataError:
    what, found, mend = problem
    return DataError(what, where=image.location(where), found=found, mend=mend)
