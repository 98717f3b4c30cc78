"""Images by path or by bytes."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from vlsi_cache.errors import DataError

__all__ = ["ImageRef", "missing_image"]


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An encoded image, either in a file or in memory. Exactly one of the two is set."""

    path: Path | None = None
    """File that holds the image."""
    data: bytes | None = None
    """The content of an encoded file."""

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
                where=self.location(where),
                found=error.strerror or type(error).__name__,
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
            DataError: the file is missing, cannot be read, or is not a sound image.
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
    """The error that names a missing image file."""
    return DataError(
        "image file is missing",
        where=image.location(where),
        mend="Restore the file, or give its path relative to the data file",
    )


def _unreadable(image: ImageRef, where: str | None, found: str) -> DataError:
    return DataError(
        "image cannot be decoded",
        where=image.location(where),
        found=found,
        mend="Replace the file or drop the sample",
    )
