"""Offline teacher-cache distillation: layer by layer, without the teacher in memory."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlsi_cache.recipe import load_recipe
    from vlsi_cache.store import open_cache
    from vlsi_cache.student import train_student
    from vlsi_cache.teacher import dump_teacher
    from vlsi_cache.verbalizer import load_exits

__all__ = ["dump_teacher", "load_exits", "load_recipe", "open_cache", "train_student"]

_HOMES = {
    "dump_teacher": "vlsi_cache.teacher",
    "load_exits": "vlsi_cache.verbalizer",
    "load_recipe": "vlsi_cache.recipe",
    "open_cache": "vlsi_cache.store",
    "train_student": "vlsi_cache.student",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: torch and transformers take seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
