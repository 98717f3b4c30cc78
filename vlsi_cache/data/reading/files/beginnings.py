"""Data files whose bytes are not what their names say, refused before anything is read of them."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Final

from vlsi_cache.contents import Contents, find_contents, find_link
from vlsi_cache.errors import DataError

__all__ = ["not_a_file", "validate_json_file", "validate_not_lost", "validate_packed_file"]

_PACKED: Final = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
"""What compressed files hold, by their suffixes."""
_JSON_STARTS: Final = (b"{", b"[", b'"')


def validate_json_file(path: Path, where: Path) -> None:
    """Refuse a file that is not text in UTF-8, as far as its first bytes show.

    Args:
        path: the file. An empty one passes.
        where: the file in errors, which may be packed.

    Raises:
        DataError: it holds something else.
        OSError: it cannot be read.
    """
    found = find_contents(path)
    if found.kind == "wide text":
        raise DataError(
            f"file is not UTF-8, but {found.words}",
            where=where,
            found=f"the bytes {_start(path).hex(' ')}",
            mend=found.mend,
        )
    if found.kind in ("text", "empty"):
        return
    begins = _start(path, 64).removeprefix(codecs.BOM_UTF8).lstrip()
    if found.kind == "binary" and begins.startswith(_JSON_STARTS):
        return  # a row that is damaged in the middle has a line to name
    raise _other(found, "text" if found.kind == "another kind" else "data", where)


def validate_packed_file(path: Path) -> None:
    """Refuse a file with the suffix of a compression that holds something else.

    Raises:
        DataError: it does.
        OSError: it cannot be read.
    """
    found = find_contents(path)
    expected = _PACKED[path.suffix.lower()]
    # a stream may begin with frames of its own kind, which are not known here
    if found.kind not in ("empty", "binary") and found.words != expected:
        raise _other(found, expected, path)


def validate_not_lost(path: Path) -> None:
    """Refuse a file in whose place something else was saved.

    Raises:
        DataError: it is.
        OSError: it cannot be read.
    """
    found = find_contents(path)
    if found.kind == "not the file":
        raise _other(found, "data", path)


def not_a_file(path: Path) -> DataError:
    """Return the error for a path at which neither a file nor a folder stands."""
    link = find_link(path)
    return DataError(
        "data is neither a file nor a folder",
        where=path,
        found=link,
        mend="Mend the link" if link else "Write it into a file",
    )


def _other(found: Contents, expected: str, where: Path) -> DataError:
    named = {"text": "Take the suffix off its name", "Parquet": "Name it .parquet"}
    return DataError(
        f"file is not {expected}, but {found.words}",
        where=where,
        mend=named.get(found.words, found.mend),
    )


def _start(path: Path, num_bytes: int = 4) -> bytes:
    with path.open("rb") as file:
        return file.read(num_bytes)
