"""Slips that show before anything is imported that takes seconds."""

from __future__ import annotations

from pathlib import Path

from vlsi_cache.errors import ModelError

__all__ = ["validate_cache_there", "validate_verbalizers_there"]


def validate_cache_there(path: str | Path) -> None:
    """Refuse a cache on this disk that is not there. Whether it is sound, a later look says.

    Raises:
        CacheError: there is none.
    """
    if "://" in str(path) or Path(path).exists():
        return
    from vlsi_cache.store import open_cache

    open_cache(path)


def validate_verbalizers_there(folder: Path | None) -> None:
    """Refuse a folder of trained verbalizers that is not there.

    Raises:
        ModelError: there is none.
    """
    if folder is not None and not folder.is_dir():
        raise ModelError(
            "no trained verbalizers here",
            where=folder,
            expected="a folder with verbalizers.json",
            mend="Leave teacher.verbalizers (or student.verbalizers) out to train them",
        )
