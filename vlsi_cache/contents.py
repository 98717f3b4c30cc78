"""What the bytes of a file are, in words, whatever its name says."""

from __future__ import annotations

import codecs
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

__all__ = ["HEAD_BYTES", "Contents", "Kind", "find_contents", "find_link", "recognise"]

Kind = Literal["text", "wide text", "binary", "empty", "not the file", "another kind"]
HEAD_BYTES: Final = 4096
"""Bytes at the beginning of a file by which it is recognised."""
_SHOWN: Final = 60
_MOST_ANSWER_BYTES: Final = 1000
_AGAIN: Final = "Copy or download it again"
_ITSELF: Final = "Download the file itself: in its place came what the server had to say"
_UNPACK: Final = "Unpack it, or give it the suffix of its kind"
_ANOTHER: Final = "Give the right file in its place"
_LFS: Final = b"version https://git-lfs.github.com/spec/"
_LFS_SIZE: Final = re.compile(rb"^size (\d+)", re.MULTILINE)
_TITLE: Final = re.compile(rb"<title[^>]*>\s*(.*?)\s*</title", re.IGNORECASE | re.DOTALL)
_PACKED: Final = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zX", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a rar archive"),
)
"""What packed files begin with, by their kinds."""
_OTHERS: Final = (
    (b"PAR1", "Parquet"),
    (b"ARROW1", "Arrow"),
    (b"\xff\xff\xff\xff", "Arrow"),
    (b"Obj\x01", "Avro"),
    (b"ORC", "ORC"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x89HDF", "HDF5"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"GGUF", "GGUF"),
    (b"%PDF", "PDF"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"\xd0\xcf\x11\xe0", "an old Office document"),
    (b"\x7fELF", "a program"),
)
"""What other files begin with, by their kinds."""
_PICKLES: Final = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
_TAR: Final = slice(257, 262)
_ANSWERS: Final = (
    "entry not found",
    "repository not found",
    "revision not found",
    "not found",
    "404",
    "403",
    "401",
    "429",
    "500 ",
    "502 ",
    "503 ",
    "504 ",
    "invalid username or password",
    "invalid credentials",
    "access to ",
    "access denied",
    "forbidden",
    "unauthorized",
    "too many requests",
    "bad gateway",
    "internal server error",
    "we had to rate limit you",
)
"""What the answers of servers begin with, when they are saved in place of a file."""
_ANSWER_KEYS: Final = frozenset(
    {"error", "message", "detail", "statuscode", "status", "path", "timestamp"}
)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds."""

    kind: Kind
    """``not the file``: what is saved in its place, such as a web page."""
    words: str
    """What it is, as a noun."""
    mend: str
    """What a user can do, if it is not what it should be."""


def find_contents(path: Path) -> Contents:
    """Find what a file holds, by its first bytes.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        size = file.seek(0, 2)
    return recognise(head, size)


def find_link(path: Path) -> str | None:
    """Find what stands at a path where no file does, such as a link to nothing. None for nothing.

    Raises:
        OSError: it cannot be looked at.
    """
    if path.is_dir():
        return "a folder"
    if path.is_symlink() and not path.exists():
        return f"a link to {path.readlink()}, which is not there"
    return None


def recognise(head: bytes, size: int) -> Contents:
    """Say what a file holds.

    Args:
        head: its first bytes, a few thousand or all.
        size: bytes of all of it.
    """
    head = head[:HEAD_BYTES]
    if not size:
        return Contents("empty", "an empty file", _AGAIN)
    if not head.strip(b"\0"):
        return Contents("not the file", f"NUL bytes alone in the first {len(head):,}", _AGAIN)
    if head.startswith(_LFS):
        return _pointer(head)
    return _by_magic(head) or _by_text(head, size)


def _pointer(head: bytes) -> Contents:
    size = _LFS_SIZE.search(head)
    of = f" to {int(size[1]):,} bytes" if size else ""
    return Contents(
        "not the file",
        f"a git-lfs pointer{of}",
        "Fetch what it points to with git lfs pull, or download the file itself",
    )


def _by_magic(head: bytes) -> Contents | None:
    if head[8:9] == b"{" and b"\0" in head[:8] and int.from_bytes(head[:8], "little") < 2**32:
        return _other("safetensors")
    if head[_TAR] == b"ustar":
        return _other("a tar archive", _UNPACK)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or _is_wide(head[:4]):
        return Contents("wide text", "UTF-16 or UTF-32", "Save the file as UTF-8")
    if head.startswith(_PICKLES) or (head.startswith(b"PK\x03\x04") and b"/data.pkl" in head):
        return _other("a pickle of Python or PyTorch")
    for magic, words in _PACKED:
        if head.startswith(magic):
            return _other(words, _UNPACK)
    return next((_other(words) for magic, words in _OTHERS if head.startswith(magic)), None)


def _other(words: str, mend: str = _ANOTHER) -> Contents:
    return Contents("another kind", words, mend)


def _is_wide(start: bytes) -> bool:
    """Report whether the first bytes are a letter of ASCII in UTF-16 or UTF-32."""
    nonzero = [byte for byte in start if byte]
    return b"\0" in start and 0 < len(nonzero) <= 2 and all(9 <= byte < 127 for byte in nonzero)


def _by_text(head: bytes, size: int) -> Contents:
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    lower = text[:_SHOWN].lower()
    if lower.startswith((b"<!doctype html", b"<html")):
        title = _TITLE.search(text)
        named = f" ({_shown(title[1])})" if title and title[1] else ""
        return Contents("not the file", f"an HTML page{named}", _ITSELF)
    if lower.startswith(b"<?xml"):
        is_answer = b"<Error>" in text and b"<Code>" in text
        kind: Kind = "not the file" if is_answer else "another kind"
        return Contents(kind, "an XML document", _ITSELF if is_answer else _ANOTHER)
    if size <= _MOST_ANSWER_BYTES and _is_answer(text):
        return Contents("not the file", f"an answer of a server ({_shown(text)})", _ITSELF)
    if _is_binary(head):
        return Contents("binary", "bytes that are not text", _AGAIN)
    return Contents("text", "text", _ANOTHER)


def _is_answer(text: bytes) -> bool:
    """Report whether a short text is an error that a server sent."""
    found = text.decode(errors="replace").strip()
    if "\n" not in found and found.lower().startswith(_ANSWERS) and found[:1] not in "{[":
        return not found.isdigit()
    try:
        value = json.loads(found)
    except (ValueError, RecursionError):
        return False
    if not isinstance(value, dict) or not {str(key).lower() for key in value} <= _ANSWER_KEYS:
        return False
    return any(isinstance(value.get(key), str) for key in ("error", "message", "detail"))


def _is_binary(head: bytes) -> bool:
    """Report whether bytes are more than a text with a few characters that are none."""
    control = sum(byte < 32 and byte not in b"\t\n\r\f\b\x1b" for byte in head)
    wrong = head.decode(errors="replace").count("\ufffd")
    return 20 * control > len(head) or 3 * wrong > len(head)


def _shown(text: bytes) -> str:
    words = " ".join(text.decode(errors="replace").split())
    return words if len(words) <= _SHOWN else f"{words[:_SHOWN]} …"
