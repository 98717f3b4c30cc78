"""What all arms share: teacher, student, data, verbalizers and caches. Each is made once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
from material import assets
from material.made_up import save_small_model, write_letters
from material.teacher import (
    TAPS,
    Training,
    encoded_batches,
    linear_verbalizers,
    save_verbalizers_once,
)

from experiments.first_proof.arms import STAGES, Arm
from experiments.first_proof.cut import cut_blocks, start_again
from experiments.first_proof.narrow import narrow_channels
from vlsi_cache import dump_teacher
from vlsi_cache.models import Backbone, load_backbone
from vlsi_cache.recipe import DataSection, ModelSection, Recipe, recipe_from_mapping
from vlsi_cache.verbalizer import VerbalizerBank

__all__ = ["CACHES", "FULL", "QUICK", "Plan", "Rates", "Setting"]

_DRAWS = {"k": 0, "m": 14, "drawn_from": "rest"}
CACHES: Mapping[str, Mapping[str, Any]] = {
    "cache": _DRAWS,
    "truncated": {"k": 4, "m": 0, "drawn_from": "rest"},
    "unseen": _DRAWS,
    "hidden-512": {**_DRAWS, "hidden": {"bits": 512}},
    "hidden-128": {**_DRAWS, "hidden": {"bits": 128}},
}
"""What the caches keep: draws alone, likely tokens alone, which take a fifth more bytes, and draws
beside signs of a hidden state. That of ``unseen`` is read by verbalizers that trained on other
conversations."""

MADE_UP_TAPS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Rates:
    """Peak learning rates."""

    interaction: float
    finetuning: float

    def __str__(self) -> str:
        return f"{self.interaction:g}-{self.finetuning:g}"


@dataclass(frozen=True)
class Plan:
    """One training of the student."""

    output: Path
    interaction: Mapping[str, Any]
    """Section of the recipe, without the schedule."""
    rates: Rates
    seed: int
    cache: str = "cache"
    """Name of the cache."""
    length: float = 1.0
    """Its length over that of a whole run."""
    stages: tuple[str, ...] = STAGES
    finetuning: Mapping[str, Any] = field(default_factory=dict)
    """Section of the recipe, without the schedule."""
    student: Path | None = None
    """What a later stage begins with. The cut by default."""
    starts_random: bool = False
    """Whether the student begins with random blocks in place of the cut's."""
    is_narrow: bool = False
    """Whether it begins with a part of the cut's channels."""

    @property
    def reads_taps(self) -> bool:
        """Whether the student's verbalizers are needed."""
        return self.interaction.get("inner") != "none" and "interaction" in self.stages


@dataclass(frozen=True)
class Setting:
    """Sizes of the proof, and the paths of its parts."""

    name: str
    student_blocks: tuple[int, ...]
    """Blocks of the teacher that the student starts with."""
    student_taps: tuple[int, ...]
    train_samples: int
    validation_samples: int
    held_out_samples: int
    curve_samples: int
    """Number of held-out conversations that are scored during training too."""
    verbalizer_samples: int
    verbalization_steps: int
    interaction_steps: int
    finetuning_steps: int
    search_length: float
    """Length of a run of the search over that of a whole run."""
    batch_size: int
    narrow_size: int
    """Hidden size of the narrow student."""
    made_up: bool = False
    """A small model of random weights and random letters: a smoke."""

    @property
    def folder(self) -> Path:
        """The folder of everything that is not committed."""
        return assets.FOLDER / f"proof-{self.name}"

    @property
    def results(self) -> Path:
        """The folder of the results. Those of a smoke are not committed."""
        return (self.folder if self.made_up else Path(__file__).parent) / "results"

    @property
    def last_tap(self) -> int:
        """The teacher's last inner tap."""
        return MADE_UP_TAPS[-1] if self.made_up else TAPS[-1]

    @property
    def num_steps(self) -> int:
        """Number of steps of every arm."""
        return self.interaction_steps + self.finetuning_steps

    @property
    def teacher(self) -> Path:
        """An ordinary checkpoint."""
        if not self.made_up:
            return assets.smollm2()
        folder = self.folder / "teacher"
        if not (folder / "config.json").exists():
            save_small_model(folder, num_blocks=6)
        return folder

    @property
    def student(self) -> Path:
        """The teacher without some of its blocks."""
        folder = self.folder / "student"
        if not (folder / "config.json").exists():
            cut_blocks(self.teacher, folder, self.student_blocks)
        return folder

    @property
    def random_student(self) -> Path:
        """The student with random blocks."""
        folder = self.folder / "student-random"
        if not (folder / "config.json").exists():
            start_again(self.student, folder)
        return folder

    @property
    def narrow_student(self) -> Path:
        """The student with three quarters of its channels, the largest on some of the data."""
        folder = self.folder / "student-narrow"
        if not (folder / "config.json").exists():
            data, count = DataSection(path=str(self.data("train"))), 4 * self.batch_size
            batches = encoded_batches(self.backbone(self.student, "student"), data, count)
            inputs = [batch["inputs"] for batch in batches]
            narrow_channels(self.student, folder, self.narrow_size, inputs)
        return folder

    def data(self, split: str) -> Path:
        """Return the conversations of ``train``, ``validation`` or ``held-out``."""
        counts = {
            "train": self.train_samples,
            "validation": self.validation_samples,
            "held-out": self.held_out_samples,
        }
        if self.made_up:
            return write_letters(self.folder / f"{split}.jsonl", counts[split])
        return assets.short_answers(counts[split], split)  # type: ignore[arg-type]

    @property
    def unseen_data(self) -> Path:
        """Return conversations for training that the caches do not hold, as many as they do."""
        if self.made_up:
            return write_letters(self.folder / "unseen.jsonl", self.train_samples)
        return assets.further_short_answers(self.train_samples, "train")

    def prepare(self, arms: Sequence[Arm]) -> None:
        """Make everything that these arms share with others."""
        if any(arm.reads_taps for arm in arms):
            self.verbalize_student()
        self.dump(sorted({arm.cache for arm in arms if arm.cache}))

    def dump(self, caches: Sequence[str]) -> None:
        """Make these caches by the product."""
        for name in caches:
            self._verbalize_teacher(name)
            shared = Plan(self.folder / "shared", {}, Rates(1e-3, 1e-3), seed=0, cache=name)
            dump_teacher(self.recipe(shared), _report_progress)

    def backbone(self, folder: Path, role: str) -> Backbone:
        """Load a model in float32."""
        return load_backbone(ModelSection(model=str(folder)), role, torch.device("cpu"))

    def recipe(self, plan: Plan) -> Recipe:
        """Return the recipe of one training."""
        role = "student-random" if plan.starts_random else "student"
        student = {"verbalizers": str(self.verbalizers(role))} if plan.reads_taps else {}
        steps = {
            "interaction": round(self.interaction_steps * plan.length),
            "finetuning": round(self.finetuning_steps * plan.length),
        }
        if "interaction" not in plan.stages:
            steps["finetuning"] += steps["interaction"]
        return recipe_from_mapping(
            {
                "teacher": {
                    "model": str(self.teacher),
                    "verbalizers": str(self.verbalizers(_reader_of(plan.cache))),
                },
                "student": {"model": str(plan.student or self._beginning(plan))} | student,
                "data": {"path": str(self.data("train"))},
                "cache": {"path": str(self.folder / plan.cache), **self._kept(plan.cache)},
                "interaction": {
                    **self._schedule(steps["interaction"], plan.rates.interaction),
                    "verbalizer_learning_rate": plan.rates.interaction,  # the rival's, too
                    **plan.interaction,
                },
                "finetuning": {
                    **self._schedule(steps["finetuning"], plan.rates.finetuning),
                    **plan.finetuning,
                },
                "stages": list(plan.stages),
                "output": str(plan.output),
                "device": "cpu",
                "seed": plan.seed,
            },
            where="benchmarks/experiments/first_proof/setting.py",
        )

    def _beginning(self, plan: Plan) -> Path:
        """Return what the first stage begins with."""
        if plan.is_narrow:
            return self.narrow_student
        return self.random_student if plan.starts_random else self.student

    def _kept(self, cache: str) -> dict[str, Any]:
        """Return what a cache keeps. A made-up model has too small a state for so many signs."""
        kept = dict(CACHES[cache])
        return kept | {"hidden": {}} if self.made_up and "hidden" in kept else kept

    def _schedule(self, steps: int, learning_rate: float) -> dict[str, Any]:
        return {
            "steps": steps,
            "batch_size": self.batch_size,
            "learning_rate": learning_rate,
            "final_learning_rate": learning_rate / 20,
            "warmup_steps": steps // 10,
            "save_every": 100_000,
        }

    def verbalizers(self, role: str) -> Path:
        """Return the folder of the verbalizers of the teacher or of a student."""
        return self.folder / f"{role}-verbalizers"

    def _verbalize_teacher(self, cache: str) -> None:
        """Train the verbalizers that read the teacher for a cache."""
        # a made-up teacher has fewer blocks than the default taps need
        taps = {"taps": MADE_UP_TAPS} if self.made_up else {}
        data = self.unseen_data if cache == "unseen" else self.data("train")

        def train() -> tuple[Backbone, VerbalizerBank]:
            teacher = self.backbone(self.teacher, "teacher")
            return teacher, self._linear(teacher, Training(**self._verbalization, **taps), data)

        save_verbalizers_once(self.verbalizers(_reader_of(cache)), train)

    def verbalize_student(self, *, starts_random: bool = False) -> None:
        """Train a student's verbalizers, which start towards the teacher's output."""
        role, folder = "student", self.student
        if starts_random:
            role, folder = "student-random", self.random_student

        def train() -> tuple[Backbone, VerbalizerBank]:
            student = self.backbone(folder, "student")
            towards = self.backbone(self.teacher, "teacher").decoder
            training = Training(self.student_taps, **self._verbalization, towards=towards)
            return student, self._linear(student, training, self.data("train"))

        save_verbalizers_once(self.verbalizers(role), train)

    @property
    def _verbalization(self) -> dict[str, Any]:
        return {"steps": self.verbalization_steps, "learning_rate": 1e-3}

    def _linear(self, backbone: Backbone, training: Training, data: Path) -> VerbalizerBank:
        """Train linear verbalizers, which takes minutes where the product's take hours."""
        torch.manual_seed(0)
        section = DataSection(path=str(data))
        batches = encoded_batches(backbone, section, self.verbalizer_samples)
        return linear_verbalizers(backbone, batches, training)


FULL = Setting(
    name="smollm2",
    student_blocks=(0, 1, 2, 3, 4, 5, 24, 25, 26, 27, 28, 29),  # of those tried, the least broken
    student_taps=(2, 6, 10),
    train_samples=1500,
    validation_samples=60,
    held_out_samples=300,
    curve_samples=30,
    verbalizer_samples=1500,
    verbalization_steps=120,
    interaction_steps=120,
    finetuning_steps=60,
    search_length=0.25,
    batch_size=8,
    narrow_size=432,  # a multiple of the 9 heads, which the architecture asks for
)
QUICK = Setting(
    name="quick",
    student_blocks=(0, 2, 3, 5),
    student_taps=(1, 2),
    train_samples=48,
    validation_samples=6,
    held_out_samples=12,
    curve_samples=6,
    verbalizer_samples=16,
    verbalization_steps=3,
    interaction_steps=4,
    finetuning_steps=4,
    search_length=0.5,
    batch_size=4,
    narrow_size=48,
    made_up=True,
)


def _reader_of(cache: str) -> str:
    """Return the name of the verbalizers that read the teacher for a cache."""
    return "teacher-unseen" if cache == "unseen" else "teacher"


def _report_progress(progress: Any) -> None:
    click.echo(f"dumped {progress.num_samples} of {progress.total_samples} samples", err=True)
