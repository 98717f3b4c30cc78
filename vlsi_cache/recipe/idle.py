"""Settings that a recipe gives and nothing reads."""

from __future__ import annotations

from typing import Final, Literal

from vlsi_cache.recipe.sections import InteractionSection, MatchingSection, Recipe, Section

__all__ = ["idle_settings"]

_BY_DIVERGENCE: Final = ("multinomial", "expected")
"""Strategies that weigh by a temperature."""


def idle_settings(recipe: Recipe, role: Literal["teacher", "student"]) -> list[str]:
    """What differs from its default and has no effect beside the rest, each with the reason.

    Args:
        recipe: the whole.
        role: whose settings: those that ``dump_teacher`` reads, or ``train_student``.
    """
    model = getattr(recipe, role)
    found = []
    if model.verbalizers is not None:
        names, reason = ["verbalizer", "verbalization"], f"{role}.verbalizers are trained already"
        found += _changed(model, role, names, reason)
    if role == "teacher":
        if recipe.cache.on_error == "stop":
            names, reason = ["max_failures_in_a_row"], "cache.on_error is stop"
            found += _changed(recipe.cache, "cache", names, reason)
    elif "interaction" in recipe.stages:
        found += _of_interaction(recipe.interaction)
    return found


def _of_interaction(section: InteractionSection) -> list[str]:
    matching, path, found = section.matching, "interaction.matching", []
    if section.inner in ("ce", "none"):
        names = [*MatchingSection.model_fields]
        found += _changed(matching, path, names, f"interaction.inner is {section.inner}")
    elif matching.strategy not in _BY_DIVERGENCE:
        names, reason = ["adaptive_temperature", "temperature"], f"{matching.strategy} has none"
        found += _changed(matching, path, names, reason)
    if section.inner == "none":
        found += _changed(section, "interaction", ["inner_weight"], "interaction.inner is none")
    if "skewed" not in (section.inner, section.output):
        reason = "neither inner nor output is skewed"
        found += _changed(section, "interaction", ["skew"], reason)
    if not section.follow:
        names = ["follow_timeout_seconds"]
        found += _changed(section, "interaction", names, "interaction.follow is false")
    return found


def _changed(section: Section, path: str, names: list[str], reason: str) -> list[str]:
    defaults = type(section)()
    return [
        f"{path}.{name} has no effect: {reason}"
        for name in names
        if getattr(section, name) != getattr(defaults, name)
    ]
