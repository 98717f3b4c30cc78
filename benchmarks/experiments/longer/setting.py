"""Sizes of the experiment, its two arms, and where its parts lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from material import assets

__all__ = ["ARMS", "FULL", "QUICK", "SYSTEM", "Setting"]

ARMS: Mapping[str, Mapping[str, Any] | None] = {"output": None, "hidden": {}}
"""Arm → `interaction.hidden`: from the output alone, or from the recorded hidden state too."""
SYSTEM = "You are helpful."


@dataclass(frozen=True)
class Setting:
    """Sizes of one measurement. Times are in seconds."""

    name: str
    student_blocks: tuple[int, ...]
    """Blocks of the teacher that the student starts with."""
    tap: int
    """The tap whose hidden state is recorded."""
    sampled_tokens: int
    """Tokens of the answers, when sampling stops."""
    sampling_seconds: float
    """Time for the answers, when sampling stops too."""
    sampling_batch: int
    new_tokens: int
    """Longest answer."""
    samplers: int
    """Processes that sample."""
    dumps: int
    """Processes that dump, each a partition."""
    workers: int
    """Processes that read for each command."""
    samples_per_shard: int
    batch_size: int
    learning_rate: float
    short_tokens: int
    """Response tokens of a short run."""
    held_out_samples: int
    """Conversations that are scored at the end."""
    measured_samples: int
    """Those that are measured on the way."""
    measured_every: int
    """Steps from one measurement of a long run to the next."""
    parallel: int
    """Trainings at once."""
    seeds: int
    budget: float
    """Time for the dump and all trainings."""
    made_up: bool = False
    """A small model of random weights: a smoke."""

    @property
    def folder(self) -> Path:
        """The folder of everything that is made on the way. Each measurement empties it."""
        return assets.FOLDER / f"longer-{self.name}"

    @property
    def student(self) -> Path:
        """The folder of the cut."""
        return self.folder / "student"

    @property
    def data(self) -> Path:
        """The file of the answered conversations."""
        return self.folder / "answers.jsonl"


FULL = Setting(
    name="smollm2",
    student_blocks=(0, 1, 2, 3, 4, 5, 24, 25, 26, 27, 28, 29),  # the first proof's
    tap=27,
    sampled_tokens=2_000_000,
    sampling_seconds=70,
    sampling_batch=2048,
    new_tokens=96,
    samplers=3,
    dumps=4,
    workers=2,
    samples_per_shard=512,
    batch_size=64,
    learning_rate=1e-3,
    short_tokens=250_000,
    held_out_samples=650,
    measured_samples=512,
    measured_every=50,
    parallel=6,
    seeds=3,
    budget=270,
)
QUICK = Setting(
    name="quick",
    student_blocks=(0, 2, 3, 5),
    tap=4,
    sampled_tokens=100_000,
    sampling_seconds=600,
    sampling_batch=32,
    new_tokens=12,
    samplers=1,
    dumps=1,
    workers=0,
    samples_per_shard=16,
    batch_size=4,
    learning_rate=1e-3,
    short_tokens=120,
    held_out_samples=10,
    measured_samples=6,
    measured_every=4,
    parallel=1,
    seeds=1,
    budget=600,
    made_up=True,
)
