"""The record, and the taps' weight, that follow from a recipe which gives a part of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final, Literal

from vlsi_cache.phases import speaks_for_all
from vlsi_cache.recipe.idle import warn_idle_settings
from vlsi_cache.recipe.learning import TAP_WEIGHT_KEYS
from vlsi_cache.recipe.recipe import Recipe

__all__ = [
    "find_completion",
    "find_weight_completion",
    "report_completions",
    "report_settings",
]

logger = logging.getLogger(__name__)

_RECORD: Final = ("k", "m", "drawn_from")


def report_settings(recipe: Recipe, role: Literal["teacher", "student"]) -> None:
    """Log what a command does that its recipe does not name, and warn of settings without effect.

    Args:
        recipe: the recipe.
        role: the model that the command works on.
    """
    report_completions(recipe, role)
    warn_idle_settings(recipe, role)


def report_completions(recipe: Recipe, *roles: Literal["teacher", "student"]) -> None:
    """Log the record of a teacher, and the taps' weight of a student, that follow from a part.

    See ``find_completion`` and ``find_weight_completion``.
    """
    finders = {"teacher": find_completion, "student": find_weight_completion}
    for line in (finders[role](recipe) for role in roles):
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
        f"{_listing('cache', given)} without {_listing('cache', missing)}"
    )
    if cache.k and cache.m and "drawn_from" in missing:
        line += "; with cache.drawn_from: whole it takes fewer bytes"
    return line


def find_weight_completion(recipe: Recipe) -> str | None:
    """Find the taps' weight in stage two if a recipe gives some of its three keys, not all.

    Returns:
        A line with the whole weight, or None if it follows from nothing but defaults.
    """
    section = recipe.interaction
    given = [name for name in TAP_WEIGHT_KEYS if name in section.model_fields_set]
    missing = [name for name in TAP_WEIGHT_KEYS if name not in given]
    without_taps = section.inner == "none" or "interaction" not in recipe.stages
    if not given or not missing or without_taps:
        return None
    schedule = section.inner_schedule
    falls = "stays"
    if schedule is not None:
        falls = f"falls to {schedule.end:g} of that until {schedule.until:.0%} of the stage"
    return (
        f"the taps' weight is {section.inner_weight:g} for {section.inner_weight_of} and {falls}: "
        f"the recipe gives {_listing('interaction', given)} without "
        f"{_listing('interaction', missing)}"
    )


def _listing(section: str, names: Iterable[str]) -> str:
    return " and ".join(f"{section}.{name}" for name in names)
