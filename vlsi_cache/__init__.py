"""Offline teacher-cache distillation: layer by layer, without the teacher in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlsi_cache.store import open_cache

__all__ = ["open_cache"]


def __getattr__(name: str) -> Any:
    """Import what is asked for, so that importing the package costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vlsi_cache import store

    return getattr(store, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
