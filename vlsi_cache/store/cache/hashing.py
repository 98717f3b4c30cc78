"""SHA-256 of a published file, piece by piece."""

from __future__ import annotations

import hashlib
from typing import Final

from vlsi_cache.store.places.place import Place

__all__ = ["hash_file"]

_PIECE_BYTES: Final = 2**22


def hash_file(place: Place, key: str) -> tuple[str, int]:
    """Return a file's SHA-256 in hex, and its bytes.

    Raises:
        CacheError: the file is missing or cannot be read.
    """
    digest, start, size = hashlib.sha256(), 0, place.size(key) or 0
    # one byte more, so that a growing file differs, and yet comes to an end
    while start <= size:
        piece = place.read_range(key, start, min(start + _PIECE_BYTES, size + 1))
        digest.update(piece)  # releases the interpreter lock: threads hash side by side
        start += len(piece)
        if not piece:
            break
    return digest.hexdigest(), start
