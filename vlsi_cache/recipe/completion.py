"""The record that follows from a recipe which gives only a part of it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from vlsi_cache.phases import speaks_for_all
from vlsi_cache.recipe.recipe import Recipe

__all__ = ["find_completion", "report_completion"]

logger = logging.getLogger(__name__)

_RECORD: Final = ("k", "m", "drawn_from")


def report_completion(recipe: Recipe) -> None:
    """Log the record that follows from a part of it, once a run; see ``find_completion``."""
    line = find_completion(recipe)
    if line is not None and speaks_for_all():
        logger.info("%s", line)


def find_completion(recipe: Recipe) -> str | None:
    """Find what a recipe records if it gives some of ``k``, ``m`` and ``drawn_from``, not all.

    Returns:
        A line with the whole record, or None if it follows from nothing but defaults. With k = 0
        all draws are of the whole distribution, so ``drawn_from`` is not missed.
    """
    cache = recipe.cache
    given = [name for name in _RECORD if name in cache.model_fields_set]
    missing = [name for name in _RECORD if name not in given]
    if not cache.k and "drawn_from" in missing:
        missing.remove("drawn_from")
    if not given or not missing:
        return None
    line = (
        f"the record is k {cache.k}, m {cache.m}, drawn_from {cache.drawn_from}: the recipe gives "
        f"{_listing(given)} without {_listing(missing)}"
    )
    if cache.k and cache.m and "drawn_from" in missing:
        line += "; with cache.drawn_from: whole it takes fewer bytes"
    return line


def _listing(names: Iterable[str]) -> str:
    return " and ".join(f"cache.{name}" for name in names)
