"""Two runs or two caches side by side, with what differs in their settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from vlsi_cache.differences import ABSENT, Difference, find_differences
from vlsi_cache.jsonmodels import ReportModel
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.report.run.summary import RunSummary
from vlsi_cache.report.settings import differing_text
from vlsi_cache.store.cache.figures.summary import CacheSummary

__all__ = [
    "CacheComparison",
    "RunComparison",
    "SettingDifference",
    "compare_caches",
    "compare_runs",
    "value_text",
]

_BEGUN: Final = "begun"


class SettingDifference(ReportModel):
    """One setting with two values."""

    path: str
    """Keys from the root, joined by dots."""
    first: Any
    """Value of the first, null if ``absent`` names it."""
    second: Any
    """Value of the second, null if ``absent`` names it."""
    absent: str | None = None
    """Which of the two lacks the setting: ``first`` or ``second``."""


class CacheComparison(ReportModel):
    """Two caches."""

    first: CacheSummary
    """Statistics of the first."""
    second: CacheSummary
    """Statistics of the second."""
    differences: tuple[SettingDifference, ...]
    """Differences of the manifests, in the order of their paths."""


class RunComparison(ReportModel):
    """Two runs."""

    first: RunSummary
    """The first."""
    second: RunSummary
    """The second."""
    differences: tuple[SettingDifference, ...]
    """Differences of the stages' settings, in the order of their paths."""


def compare_caches(
    first: CacheSummary, second: CacheSummary, manifests: Sequence[CacheManifest]
) -> CacheComparison:
    """Return two caches with the differences of their manifests.

    Args:
        first: statistics of one.
        second: statistics of the other.
        manifests: the manifests of both.
    """
    trees = [manifest.model_dump(mode="json") for manifest in manifests]
    return CacheComparison(first=first, second=second, differences=_differences(*trees))


def compare_runs(first: RunSummary, second: RunSummary) -> RunComparison:
    """Return two runs with the differences of their stages' settings.

    A stage that only one of them has is one difference.
    """
    trees = [{stage.name: stage.settings for stage in run.stages} for run in (first, second)]
    common = trees[0].keys() & trees[1].keys()
    flat = [
        {name: settings if name in common else _BEGUN for name, settings in tree.items()}
        for tree in trees
    ]
    return RunComparison(first=first, second=second, differences=_differences(*flat))


def value_text(difference: SettingDifference, *, first: bool) -> str:
    """Return one of the values as a table shows it."""
    if difference.absent == ("first" if first else "second"):
        return "–"
    own, other = difference.first, difference.second
    return differing_text(own, other) if first else differing_text(other, own)


def _differences(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> tuple[SettingDifference, ...]:
    return tuple(map(_named, find_differences(first, second)))


def _named(difference: Difference) -> SettingDifference:
    values = difference.recorded, difference.wanted
    absent = next(
        (name for name, value in zip(("first", "second"), values, strict=True) if value is ABSENT),
        None,
    )
    first, second = (None if value is ABSENT else value for value in values)
    return SettingDifference(path=difference.path, first=first, second=second, absent=absent)
