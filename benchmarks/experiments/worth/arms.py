"""The arms of all experiments: how each student is distilled, and what is fine-tuned after it.

All see the same samples in the same order for a seed. They take as many steps of distillation, but
for those of another length. They start from one cut of SmolLM2, from a narrow one, or from the same
random blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ARMS", "LABELS", "LORA_RATE", "RECORD", "Arm"]

LORA_RATE = 4e-3
"""The rate of the adapters, which the first proof's search chose for all arms."""
SLOW = LORA_RATE / 20
"""The rate of dense verbalizers that are trained already (benchmarks/experiments/first_proof)."""

LABELS: Mapping[str, Any] = {}
RECORD: Mapping[str, Any] = {"record_weight": 1.0}


@dataclass(frozen=True)
class Arm:
    """One way to distil the student."""

    name: str
    interaction: Mapping[str, Any]
    """Section of the recipe, without the schedule."""
    tunings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Fine-tunings after it: name → section of the recipe, without the schedule."""
    corrected: bool = False
    """Whether the output learns the teacher's last inner tap in place of the teacher's output."""
    starts_random: bool = False
    """Whether the student begins with random blocks in place of the cut's."""
    is_narrow: bool = False
    """Whether the student begins with three quarters of the cut's channels."""
    compares_kept: bool = False
    """Whether the map of a narrow student's state only puts each channel where it was."""
    label_weight: float = 0.0
    """Weight of the output's cross-entropy to the labels, beside its other losses."""
    hidden_cosine: bool = False
    """Whether a hidden state learns the teacher's, which is in memory: the rival."""
    cache: str = "cache"
    """Name of the cache that it reads."""
    length: float = 1.0
    """Steps of its distillation over those of the others."""
    exits: bool = False
    """Whether verbalizers are trained afterwards, with the student frozen, and scored as exits."""

    def settings(self, last_tap: int) -> dict[str, Any]:
        """Return the section of the recipe for a teacher with this last inner tap."""
        target = {"output_target": {"tap": last_tap}} if self.corrected else {}
        return {**self.interaction, **target}

    @property
    def reads_taps(self) -> bool:
        """Whether inner layers are compared."""
        return self.interaction.get("inner") != "none"


_WHOLE = {"lora": None, "learning_rate": 1e-3, "final_learning_rate": 5e-5}
"""Random blocks cannot learn by adapters: all weights train."""
_FIRST = {"inner_weight": 1.0, "inner_schedule": {"until": 0.3, "end": 0.0}}
_MAPPED = {"hidden": {}, "verbalizer_learning_rate": None}
"""The map to the teacher's hidden size trains at the product's own rate."""
_TAPS = {"inner_weight_of": "all", "verbalizer_learning_rate": SLOW, "gradients_every": 10}
_FIXED = {"hidden": {}, "verbalizer_learning_rate": 1e-9}
"""A map that stays what its closed form is."""

ARMS = {
    arm.name: arm
    for arm in (
        Arm("output", {"inner": "none"}, {"labels": LABELS, "record": RECORD}, exits=True),
        Arm(
            "taps-fast",
            {**_TAPS, "inner_weight": 0.75, "verbalizer_learning_rate": LORA_RATE},
        ),
        Arm("taps", {**_TAPS, "inner_weight": 0.75}, exits=True),
        Arm("taps-first", {**_TAPS, **_FIRST}, exits=True),
        Arm(
            "taps-to-output",
            {**_TAPS, "inner_weight": 0.6, "inner_target": "output"},
            exits=True,
        ),
        Arm("tap-26", {"inner": "none"}, {"labels": LABELS}, corrected=True),
        Arm("tap-26-unseen", {"inner": "none"}, {"labels": LABELS}, corrected=True, cache="unseen"),
        Arm("output-and-labels", {"inner": "none"}, {"labels": LABELS}, label_weight=0.5),
        Arm("hidden-cosine", {"inner": "none"}, hidden_cosine=True),
        Arm("hidden-512", {"inner": "none", "hidden": {}}, cache="hidden-512"),
        Arm("hidden-128", {"inner": "none", "hidden": {}}, cache="hidden-128"),
        Arm("taps-and-hidden", {**_TAPS, **_FIRST, "hidden": {}}, cache="hidden-512"),
        Arm("narrow-output", {"inner": "none"}, is_narrow=True),
        Arm("narrow-hidden", {"inner": "none", **_MAPPED}, cache="hidden-512", is_narrow=True),
        Arm("narrow-fixed", {"inner": "none", **_FIXED}, cache="hidden-512", is_narrow=True),
        Arm(
            "narrow-kept",
            {"inner": "none", **_FIXED},
            cache="hidden-512",
            is_narrow=True,
            compares_kept=True,
        ),
        Arm("output-long", {"inner": "none"}, length=2.0),
        Arm("taps-first-long", {**_TAPS, **_FIRST}, length=2.0),
        Arm("random-output", {"inner": "none", **_WHOLE}, starts_random=True),
        Arm(
            "random-taps",
            {**_TAPS, **_WHOLE, **_FIRST, "verbalizer_learning_rate": 1e-3},
            starts_random=True,
        ),
    )
}
