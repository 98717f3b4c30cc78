"""What one demo is: its folder, its sizes and its seeds, from which every path follows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlsi_cache.demo.dataset import DemoData

__all__ = ["FULL", "QUICK", "Demo", "DemoSize", "Role"]

Role = Literal["teacher", "student"]


@dataclass(frozen=True, slots=True)
class DemoSize:
    """How much of everything the demo takes."""

    train_images: int
    heldout_images: int
    teacher_steps: int
    pretraining_steps: int
    verbalization_steps: int
    interaction_steps: int
    finetuning_steps: int
    dumped_samples: int
    batch_size: int
    divergence_samples: int
    questions: int
    """Most held-out questions that are answered, in random order."""

    @property
    def student_steps(self) -> int:
        """Steps that move the student's own weights, in both arms."""
        return self.interaction_steps + self.finetuning_steps


FULL = DemoSize(
    train_images=4000,
    heldout_images=500,
    teacher_steps=600,
    pretraining_steps=120,
    verbalization_steps=100,
    interaction_steps=200,
    finetuning_steps=100,
    dumped_samples=2048,
    batch_size=32,
    divergence_samples=500,
    questions=2000,
)
QUICK = DemoSize(
    train_images=32,
    heldout_images=8,
    teacher_steps=3,
    pretraining_steps=3,
    verbalization_steps=3,
    interaction_steps=3,
    finetuning_steps=3,
    dumped_samples=48,
    batch_size=8,
    divergence_samples=16,
    questions=64,
)


@dataclass(frozen=True, slots=True)
class Demo:
    """One demo."""

    out: Path
    """Folder of everything."""
    size: DemoSize
    seed: int = 0
    """Seed of the data, the teacher, the cache and the first pair of students."""
    pair: int = 0
    """Number of a pair of students. All pairs learn from one cache, and each has its own seed."""

    @property
    def run(self) -> Path:
        """The run folder of this pair."""
        return self.out / f"pair-{self.pair}" if self.pair else self.out

    @property
    def student_seed(self) -> int:
        """Seed of this pair's weights and of its training."""
        return self.seed + self.pair

    @property
    def data(self) -> DemoData:
        """Conversations to train on, and held-out ones."""
        return DemoData.within(self.out / "data")

    def untrained(self, role: Role) -> Path:
        """Return the folder of a model of random weights."""
        return self._folder_of(role) / "untrained" / role

    @property
    def seeing_student(self) -> Path:
        """The untrained student with the teacher's vision tower."""
        return self.run / "seeing-student"

    def pretraining(self, role: Role) -> Path:
        """Return the folder of a training from scratch."""
        return self._folder_of(role) / "from-scratch" / role

    def pretrained(self, role: Role) -> Path:
        """Return the folder of a model that was trained from scratch."""
        return self.pretraining(role) / "model"

    @property
    def recipe(self) -> Path:
        """The recipe of this pair."""
        return self.run / "recipe.yaml"

    @property
    def cache(self) -> Path:
        """The teacher's record."""
        return self.out / "cache"

    @property
    def statistics(self) -> Path:
        """Statistics of the cache."""
        return self.out / "cache-statistics.json"

    @property
    def scores(self) -> Path:
        """Scores of this pair, and in the first pair's file the teacher's too."""
        return self.run / "scores.json"

    @property
    def page(self) -> Path:
        """A page of the cache's figures, and of what each layer says."""
        return self.out / "report.html"

    @property
    def distilled(self) -> Path:
        """The student after verbalization, interaction and fine-tuning."""
        return self.run / "student"

    @property
    def finetuned_run(self) -> Path:
        """The output folder of the fine-tuning alone."""
        return self.run / "finetuned-only"

    @property
    def finetuned(self) -> Path:
        """The student after fine-tuning only."""
        return self.finetuned_run / "student"

    def _folder_of(self, role: Role) -> Path:
        return self.out if role == "teacher" else self.run
