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
    reads_taps = "interaction" not in recipe.stages or recipe.interaction.inner != "none"
    if role == "student" and not reads_taps:
        names = ["taps", "verbalizers", "verbalizer", "verbalization"]
        found += _changed(model, role, names, "interaction.inner is none")
    elif model.verbalizers is not None:
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
        if matching.strategy == "uniform":
            names = ["search_range", "order", "granularity"]
            found += _changed(matching, path, names, "the pairs of uniform are fixed")
    elif isinstance(matching.temperature, float):
        names, reason = ["adaptive_temperature"], f"{path}.temperature is a number"
        found += _changed(matching, path, names, reason)
    elif not matching.adaptive_temperature:
        reason = f"{path}.adaptive_temperature is false"
        found += _changed(matching, path, ["temperature"], reason)
    if section.inner == "none":
        found += _changed(section, "interaction", ["inner_weight"], "interaction.inner is none")
    if {section.inner, section.output} <= {"ce", "none"}:
        reason = "neither inner nor output reads the teacher's distributions"
        found += _changed(section, "interaction", ["tail"], reason)
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
