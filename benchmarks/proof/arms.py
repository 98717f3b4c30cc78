"""The arms: what each student learns from. All start alike and take as many steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["ARMS", "COMPARISONS", "Arm"]

Source = Literal["labels", "teacher", "cache", "truncated"]


@dataclass(frozen=True)
class Arm:
    """One way to train the student."""

    name: str
    source: Source
    """What it learns from before its fine-tuning: nothing; the teacher in memory, whose whole
    distributions it is given; the product's default cache; a cache of the most likely tokens, of
    about as many bytes."""
    family: str
    """Arms of a family share the search of the learning rate."""
    interaction: Mapping[str, Any] = field(default_factory=dict)
    """Of the recipe, beside the schedule."""
    rates: tuple[float, ...] = (5e-4, 1.5e-3, 4e-3)
    """Of the interaction, that the search tries."""

    @property
    def reads_taps(self) -> bool:
        """Whether inner layers are compared."""
        return self.source != "labels" and self.interaction.get("inner") != "none"


def _output(name: str, source: Source, **settings: Any) -> Arm:
    rates = (1.5e-3, 4e-3, 1e-2)
    return Arm(name, source, "output", {"inner": "none", **settings}, rates)


def _matched(strategy: str) -> Arm:
    return Arm(f"full-{strategy}", "cache", "full", {"matching": {"strategy": strategy}})


def _remedy(name: str, **settings: Any) -> Arm:
    return Arm(name, "cache", name, settings)


ARMS = {
    arm.name: arm
    for arm in (
        Arm("fine-tuning", "labels", "fine-tuning"),
        _output("output-online", "teacher"),
        _output("output-cache", "cache"),
        _output("output-renormalized", "truncated", tail="renormalize"),
        _output("output-bucket", "truncated", tail="bucket"),
        Arm("full-online", "teacher", "full"),
        Arm("full-cache", "cache", "full"),
        _matched("uniform"),
        _matched("expected"),
        _matched("shortest"),
        _remedy("full-quarter", inner_weight=0.25),
        _remedy("full-tenth", inner_weight=0.1),
        _remedy("full-expected-quarter", inner_weight=0.25, matching={"strategy": "expected"}),
        Arm(
            "output-blocks", "cache", "output-blocks", {"inner": "none", "lora": None}, (3e-4, 1e-3)
        ),
    )
}
COMPARISONS = (
    ("output-cache", "output-online"),
    ("full-cache", "full-online"),
    ("output-renormalized", "output-cache"),
    ("output-bucket", "output-cache"),
    ("output-cache", "fine-tuning"),
    ("full-cache", "output-cache"),
    ("full-uniform", "full-cache"),
    ("full-expected", "full-cache"),
    ("full-shortest", "full-cache"),
)
"""Pairs whose differences are told, seed by seed."""
