"""The arms: what each student learns from. All start alike and take as many steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["ARMS", "COMPARISONS", "STAGES", "Arm"]

STAGES = ("verbalization", "interaction", "finetuning")

Source = Literal["labels", "teacher", "cache", "truncated"]


@dataclass(frozen=True)
class Arm:
    """One way to train the student."""

    name: str
    source: Source
    """What it learns from before its fine-tuning.

    Labels are nothing more. The teacher stays in memory and gives whole distributions. The cache is
    the product's default. The truncated cache holds the most likely tokens in a fifth more bytes.
    """
    family: str
    """Arms of a family share the search of the learning rate."""
    interaction: Mapping[str, Any] = field(default_factory=dict)
    """Section of the recipe, without the schedule."""
    rates: tuple[float, ...] = (1.5e-3, 4e-3, 1e-2)
    """Learning rates of the interaction that the search tries."""

    @property
    def cache(self) -> str | None:
        """The cache that it needs. Beside the teacher, it needs only the order of its samples."""
        return {"labels": None, "truncated": "truncated"}.get(self.source, "cache")

    @property
    def reads_taps(self) -> bool:
        """Whether inner layers are compared."""
        return self.source != "labels" and self.interaction.get("inner") != "none"

    @property
    def stages(self) -> tuple[str, ...]:
        """Its stages, in order."""
        return STAGES[2:] if self.source == "labels" else STAGES


def _output(name: str, source: Source, family: str = "output", **settings: Any) -> Arm:
    return Arm(name, source, family, {"inner": "none", **settings})


def _full(
    name: str, source: Source = "cache", *, inner_weight: float = 1.0, **settings: Any
) -> Arm:
    """Make an arm with the paper's weight of the taps, unless another is given."""
    return Arm(name, source, "full", {"inner_weight": inner_weight, **settings})


ARMS = {
    arm.name: arm
    for arm in (
        Arm("fine-tuning", "labels", "fine-tuning"),
        _output("output-online", "teacher"),
        _output("output-cache", "cache"),
        _output("output-renormalized", "truncated", "output-renormalized", tail="renormalize"),
        _output("output-bucket", "truncated", "output-bucket", tail="bucket"),
        _full("full-online", "teacher"),
        _full("full-cache"),
        _full("full-uniform", matching={"strategy": "uniform"}),
        _full("full-expected", matching={"strategy": "expected"}),
        _full("full-shortest", matching={"strategy": "shortest"}),
        _full("full-quarter", inner_weight=0.25),
        _full("full-tenth", inner_weight=0.1),
        Arm(
            "output-blocks",
            "cache",
            "output-blocks",
            {"inner": "none", "lora": None},
            (3e-4, 1e-3, 2e-3),
        ),
    )
}
COMPARISONS = (
    ("output-cache", "output-online"),
    ("full-cache", "full-online"),
    ("output-renormalized", "output-cache"),
    ("output-bucket", "output-cache"),
    ("output-cache", "fine-tuning"),
    ("full-cache", "fine-tuning"),
    ("full-quarter", "fine-tuning"),
    ("full-cache", "output-cache"),
    ("full-quarter", "output-cache"),
    ("full-uniform", "full-cache"),
    ("full-expected", "full-cache"),
    ("full-shortest", "full-cache"),
    ("full-quarter", "full-cache"),
    ("full-tenth", "full-cache"),
    ("output-blocks", "output-cache"),
)
"""Pairs whose differences are reported, seed by seed."""
