"""Seals: the hash and sizes of every published file, and the index of all."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from vlsi_cache.jsonmodels import StoredModel
from vlsi_cache.manifest import Sha256, StoredCount

__all__ = [
    "CacheIndex",
    "FileSeal",
    "ProcessorSeal",
    "ShardSeal",
    "sha256_hex",
]

_FILE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*){0,3}")


def _check_inside(name: str) -> str:
    if len(name) > 200 or not _FILE_NAME.fullmatch(name):
        raise ValueError("is not the name of a file inside the processor's folder")
    return name


class FileSeal(StoredModel):
    """One file's content."""

    sha256: Sha256
    """SHA-256 of its bytes."""
    num_bytes: StoredCount
    """Number of its bytes."""


class ShardSeal(FileSeal):
    """One shard's content. It follows from the file alone, so every writer makes the same seal."""

    num_samples: StoredCount
    """Samples of the shard."""
    num_tokens: StoredCount
    """Their response tokens."""
    num_failed: StoredCount
    """Samples that could not be read and have no tokens."""


class ProcessorSeal(StoredModel):
    """The files of the teacher's processor."""

    files: dict[Annotated[str, AfterValidator(_check_inside)], FileSeal]
    """Name inside `processor/` → content."""


class CacheIndex(StoredModel):
    """All seals of a complete cache, so that opening it is one read."""

    format_version: Literal[1, 2, 3] = 1
    """Version of the cache format, as in the manifest."""
    manifest_sha256: Sha256
    """SHA-256 of `manifest.json`."""
    processor: ProcessorSeal | None
    """The processor's files, as in `processor.json`; null if none is kept."""
    shards: tuple[ShardSeal, ...] = Field(strict=False)
    """The shards' seals, in order."""


def sha256_hex(content: bytes) -> str:
    """Return the SHA-256 of bytes, in hex."""
    return hashlib.sha256(content).hexdigest()
