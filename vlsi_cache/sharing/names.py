"""Names for strangers: no path of this machine, and no address of a private store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

__all__ = ["hub_name", "public_name", "public_settings"]

_OPEN: tuple[str, ...] = ("hf://", "https://huggingface.co/")


def public_name(name: str) -> str:
    """Return a name, or the last part of a path or of an address.

    Args:
        name: a name on the hub, a path or an address.
    """
    if name.startswith(_OPEN) or not _is_private(name):
        return name
    return PurePosixPath(name.rstrip("/")).name or name


def hub_name(name: str | None) -> str | None:
    """Return a name if it is one on the hub, without a configuration's name."""
    if name is None or _is_private(name) or name.count("/") != 1:
        return None
    return name.partition(":")[0]


def public_settings(value: Any) -> Any:
    """Return JSON values with public names in place of all paths."""
    if isinstance(value, Mapping):
        return {name: public_settings(part) for name, part in value.items()}
    if isinstance(value, list):
        return [public_settings(part) for part in value]
    return public_name(value) if isinstance(value, str) else value


def _is_private(name: str) -> bool:
    """Report whether a name is a path or an address."""
    if "://" in name or name.startswith(("/", "~", ".")) or name.count("/") > 1:
        return True
    return "/" in name and Path(name).exists()
