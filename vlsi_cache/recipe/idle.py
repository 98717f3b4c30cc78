"""Settings of a recipe that have no effect."""

from __future__ import annotations

import logging
import os
from typing import Final, Literal

from vlsi_cache.phases import speaks_for_all
from vlsi_cache.recipe.learning import InteractionSection, MatchingSection
from vlsi_cache.recipe.recipe import Recipe
from vlsi_cache.recipe.section import Section

__all__ = ["idle_settings", "warn_idle_settings"]

logger = logging.getLogger(__name__)

_WITH_TEMPERATURE: Final = ("multinomial", "expected")
"""Strategies that take a softmax at a temperature."""


def warn_idle_settings(recipe: Recipe, role: Literal["teacher", "student"]) -> None:
    """Log a warning for each setting that has no effect, once a run; see ``idle_settings``."""
    for setting in idle_settings(recipe, role) if speaks_for_all() else ():
        logger.warning("%s", setting)


def idle_settings(recipe: Recipe, role: Literal["teacher", "student"]) -> list[str]:
    """Find settings that differ from their default and have no effect, each with the reason.

    Args:
        recipe: the recipe.
        role: ``teacher`` for the settings that ``dump_teacher`` reads, ``student`` for those that
            ``train_student`` reads.
    """
    model = getattr(recipe, role)
    found = []
    reads_taps = "interaction" not in recipe.stages or recipe.interaction.inner != "none"
    if role == "student" and not reads_taps:
        names = ["taps", "verbalizers", "verbalizer", "verbalization"]
        found += _changed(model, role, names, "interaction.inner is none")
    elif model.verbalizers is not None:
        reason = f"{role}.verbalizers are trained already"
        found += _changed(model, role, ["verbalizer", "verbalization"], reason)
    elif not model.verbalizer.trains:
        reason = f"{role}.verbalizer.structure is logit_lens, which has nothing to train"
        found += _changed(model, role, ["verbalization"], reason)
        found += _changed(model.verbalizer, f"{role}.verbalizer", ["start"], reason)
    if role == "teacher":
        reason = "dump-teacher records every sample, and train-student chooses among them"
        found += _changed(recipe.data, "data", ["select"], reason)
        if not recipe.skips_failures:
            names = ["max_failures_in_a_row"]
            found += _changed(recipe.cache, "cache", names, "cache.on_error is stop")
    elif "interaction" in recipe.stages:
        found += _of_interaction(recipe.interaction)
    if role == "student" and recipe.held_out.is_other_data and recipe.stages == ["verbalization"]:
        found.append("held_out has no effect: stages two and three alone are measured")
    return found


def _of_interaction(section: InteractionSection) -> list[str]:
    matching = section.matching
    path = "interaction.matching"
    found = []
    if not section.matches_taps:
        names = [*MatchingSection.model_fields]
        found += _changed(matching, path, names, _unmatched(section))
    elif matching.strategy not in _WITH_TEMPERATURE:
        names = ["adaptive_temperature", "temperature"]
        found += _changed(matching, path, names, f"{matching.strategy} has none")
        if matching.strategy == "uniform":
            names = ["search_range", "order", "granularity"]
            found += _changed(matching, path, names, "the pairs of uniform are fixed")
    elif isinstance(matching.temperature, float):
        reason = f"{path}.temperature is a number"
        found += _changed(matching, path, ["adaptive_temperature"], reason)
    elif not matching.adaptive_temperature:
        reason = f"{path}.adaptive_temperature is false"
        found += _changed(matching, path, ["temperature"], reason)
    if section.inner == "none":
        names = ["inner_weight", "inner_weight_of", "inner_schedule", "inner_target"]
        found += _changed(section, "interaction", names, "interaction.inner is none")
    if {section.inner, section.output} <= {"ce", "none"}:
        reason = "neither inner nor output reads the teacher's distributions"
        found += _changed(section, "interaction", ["tail"], reason)
    if "skewed" not in (section.inner, section.output):
        reason = "neither inner nor output is skewed"
        found += _changed(section, "interaction", ["skew"], reason)
    if "none" in (section.inner, section.output):
        reason = "it compares the gradients of inner and output, and one of them is none"
        found += _changed(section, "interaction", ["gradients_every"], reason)
    elif os.environ.get("WORLD_SIZE", "1") != "1":
        reason = "it is measured where one process trains"
        found += _changed(section, "interaction", ["gradients_every"], reason)
    if not section.follow:
        names = ["follow_timeout_seconds"]
        found += _changed(section, "interaction", names, "interaction.follow is false")
    return found


def _unmatched(section: InteractionSection) -> str:
    """Return why no taps are matched."""
    if section.inner in ("ce", "none"):
        return f"interaction.inner is {section.inner}"
    return "interaction.inner_target is output"


def _changed(section: Section, path: str, names: list[str], reason: str) -> list[str]:
    defaults = type(section)()
    return [
        f"{path}.{name} has no effect: {reason}"
        for name in names
        if name in section.model_fields_set and getattr(section, name) != getattr(defaults, name)
    ]
