"""``open_place``: the place at a path or at a URL."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from vlsi_cache.errors import CacheError
from vlsi_cache.store.places.hub import SCHEME, open_hub
from vlsi_cache.store.places.local import LocalPlace
from vlsi_cache.store.places.objects import ObjectPlace
from vlsi_cache.store.places.place import Place

__all__ = ["open_place", "url_scheme"]

_SCHEMES: Final = ("s3", "s3a", "gs", "az", "abfs", "abfss", "adl", "azure")


def open_place(address: str | Path) -> Place:
    """Return the place at a path, or at the URL of an object store or of the hub.

    Raises:
        CacheError: the URL's scheme is unknown, or there is no such repository on the hub.
    """
    scheme = url_scheme(address)
    if scheme is None:
        return LocalPlace(Path(address))
    if scheme == SCHEME:
        return open_hub(str(address))
    if scheme not in _SCHEMES:
        raise CacheError(
            "no cache can be kept there",
            where=address,
            expected=f"a path, or a URL with {', '.join((*_SCHEMES, SCHEME))}",
            found=scheme,
        )
    return ObjectPlace(str(address))


def url_scheme(address: str | Path) -> str | None:
    """Return what stands before ``://``, or None for a path."""
    scheme, found, _ = str(address).partition("://")
    return scheme if found else None
