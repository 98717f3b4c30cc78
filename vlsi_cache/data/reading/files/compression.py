"""Compressed data files, unpacked before they are read by offset."""

from __future__ import annotations

import bz2
import lzma
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from vlsi_cache.data.reading.files.beginnings import validate_packed_file
from vlsi_cache.errors import DataError, counted, first_line

__all__ = ["COMPRESSIONS", "is_compressed", "unpack"]

COMPRESSIONS: Final = (".gz", ".bz2", ".xz", ".zst")
"""Suffixes of compressed files that are read."""
_CHUNK_BYTES: Final = 1 << 20


def is_compressed(path: Path) -> bool:
    """Whether the name is a compressed file's."""
    return path.suffix.lower() in COMPRESSIONS


def unpack(path: Path) -> Path:
    """Unpack a file into the system's folder of temporary files. The caller removes it.

    Raises:
        OSError: a file cannot be read or written.
        DataError: the content is not compressed, not sound or cut off.
    """
    validate_packed_file(path)
    handle, unpacked = tempfile.mkstemp(prefix="vlsi-cache-", suffix=".jsonl")
    num_lines = 0
    try:
        with os.fdopen(handle, "wb") as file:
            for piece in _pieces(path):
                file.write(piece)
                num_lines += piece.count(b"\n")
    except (EOFError, ValueError, OSError) as error:
        Path(unpacked).unlink()
        if getattr(error, "errno", None):
            raise
        place = f", after {counted(num_lines, 'whole line')}" if num_lines else ""
        raise DataError(
            "data file cannot be read",
            where=path,
            found=first_line(error) + place,
            mend="Copy or download it again",
        ) from error
    except BaseException:
        Path(unpacked).unlink()
        raise
    return Path(unpacked)


def _pieces(path: Path) -> Iterator[bytes]:
    if path.suffix.lower() == ".zst":
        yield from _zstandard(path)
        return
    try:
        yield from _streams(path)
    except (zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"content is not sound ({error})") from error


def _streams(path: Path) -> Iterator[bytes]:
    """Unpack all streams of a file. Python's own readers ignore what follows a stream.

    Zeros between and after streams are padding, of xz itself or of a tape.
    """
    unpacker: Any = None
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            while piece := piece if unpacker else piece.lstrip(b"\0"):
                unpacker = unpacker or _unpacker(path)
                yield unpacker.decompress(piece)
                piece = unpacker.unused_data if unpacker.eof else b""
                unpacker = None if unpacker.eof else unpacker
    if unpacker is not None:
        raise EOFError("content is cut off")


def _unpacker(path: Path) -> Any:
    match path.suffix.lower():
        case ".gz":
            return zlib.decompressobj(zlib.MAX_WBITS | 16)  # 16 asks for gzip's header
        case ".bz2":
            return bz2.BZ2Decompressor()
        case _:
            return lzma.LZMADecompressor()


def _zstandard(path: Path) -> Iterator[bytes]:
    # pyarrow comes with datasets, and is imported where it is needed.
    import pyarrow

    with pyarrow.input_stream(str(path), compression="zstd") as stream:
        while piece := stream.read(_CHUNK_BYTES):
            yield piece
