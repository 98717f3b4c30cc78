"""What all arms share: teacher, student, data, verbalizers and caches, each made once."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import assets
import click
import torch
from made_up import save_small_model
from teacher import encoded_batches, linear_verbalizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from proof.arms import Arm
from vlsi_cache.models import Backbone, load_backbone
from vlsi_cache.recipe import CacheSection, DataSection, ModelSection, Recipe, recipe_from_mapping
from vlsi_cache.teacher.dump import dump_teacher
from vlsi_cache.teacher.reading import DumpProgress
from vlsi_cache.verbalizer import save_verbalizers

__all__ = ["FULL", "QUICK", "RECORDS", "Rates", "Setting"]

RECORDS = {"cache": (CacheSection().k, CacheSection().m), "truncated": (4, 0)}
"""k and m of the caches; so many of the most likely tokens take a fifth more bytes."""


@dataclass(frozen=True)
class Rates:
    """Peak learning rates."""

    interaction: float
    finetuning: float

    def __str__(self) -> str:
        return f"{self.interaction:g}-{self.finetuning:g}"


@dataclass(frozen=True)
class Setting:
    """Sizes of the proof, and where its parts lie."""

    name: str
    student_blocks: tuple[int, ...]
    """Blocks of the teacher that the student begins as."""
    student_taps: tuple[int, ...]
    train_samples: int
    validation_samples: int
    held_out_samples: int
    curve_samples: int
    """Held-out conversations that are scored during training too."""
    verbalizer_samples: int
    verbalization_steps: int
    interaction_steps: int
    finetuning_steps: int
    search_share: float
    """Length of a run of the search over that of a run."""
    batch_size: int
    made_up: bool = False
    """A small model of random weights and random letters: a smoke."""

    @property
    def folder(self) -> Path:
        """Of everything that is not committed."""
        return assets.FOLDER / f"proof-{self.name}"

    @property
    def results(self) -> Path:
        """Of what is written down; committed, but for a smoke's."""
        if self.made_up:
            return self.folder / "results"
        return Path(__file__).parents[1] / "results" / "first_proof"

    @property
    def num_steps(self) -> int:
        """Of every arm."""
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
            _cut(self.teacher, folder, self.student_blocks)
        return folder

    def data(self, part: str) -> Path:
        """Conversations of ``train``, ``validation`` or ``held-out``."""
        counts = {
            "train": self.train_samples,
            "validation": self.validation_samples,
            "held-out": self.held_out_samples,
        }
        if self.made_up:
            return _letters(self.folder / f"{part}.jsonl", counts[part])
        return assets.short_answers(counts[part], part)  # type: ignore[arg-type]

    def prepare(self, arms: Sequence[Arm]) -> None:
        """Everything that these arms share with others."""
        records = sorted({arm.record for arm in arms if arm.record})
        if records:
            self._verbalize("teacher", self.teacher, self.teacher_taps)
        if any(arm.reads_taps for arm in arms):
            self._verbalize("student", self.student, self.student_taps)
        for name in records:
            recipe = self.recipe({}, self.folder / "shared", Rates(1e-3, 1e-3), 0, record=name)
            dump_teacher(recipe, _tell)

    def backbone(self, folder: Path, role: str) -> Backbone:
        """A model in float32."""
        return load_backbone(ModelSection(model=str(folder)), role, torch.device("cpu"), "float32")

    def recipe(
        self,
        interaction: Mapping[str, Any],
        output: Path,
        rates: Rates,
        seed: int,
        *,
        record: str = "cache",
        share: float = 1.0,
        stages: Sequence[str] = ("verbalization", "interaction", "finetuning"),
    ) -> Recipe:
        """Of one run: so long a share of the whole schedule."""
        k, m = RECORDS[record]
        reads_taps = interaction.get("inner") != "none" and "interaction" in stages
        student = {"verbalizers": str(self.verbalizers("student"))} if reads_taps else {}
        steps = {
            "interaction": round(self.interaction_steps * share),
            "finetuning": round(self.finetuning_steps * share),
        }
        if "interaction" not in stages:
            steps["finetuning"] += steps["interaction"]
        return recipe_from_mapping(
            {
                "teacher": {
                    "model": str(self.teacher),
                    "verbalizers": str(self.verbalizers("teacher")),
                },
                "student": {"model": str(self.student)} | student,
                "data": {"path": str(self.data("train"))},
                "cache": {"path": str(self.folder / record), "k": k, "m": m},
                "interaction": {
                    **self._schedule(steps["interaction"], rates.interaction),
                    **interaction,
                },
                "finetuning": self._schedule(steps["finetuning"], rates.finetuning),
                "stages": list(stages),
                "output": str(output),
                "device": "cpu",
                "seed": seed,
            },
            where="benchmarks/proof/setting.py",
        )

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
        """Those of the teacher or the student."""
        return self.folder / f"{role}-verbalizers"

    def _verbalize(self, role: str, model: Path, taps: Sequence[int] | None) -> None:
        """Linear ones, since they train in minutes; both start towards the teacher's output."""
        folder = self.verbalizers(role)
        if (folder / "verbalizers.json").exists():
            return
        backbone = self.backbone(model, role)
        towards = None if role == "teacher" else self.backbone(self.teacher, "teacher").decoder
        data = DataSection(path=str(self.data("train")))
        torch.manual_seed(0)
        bank = linear_verbalizers(
            backbone.decoder,
            backbone.vocab_size,
            encoded_batches(backbone, data, self.verbalizer_samples),
            taps=taps,
            towards=towards,
            steps=self.verbalization_steps,
            learning_rate=1e-3,
        )
        save_verbalizers(
            bank,
            folder,
            decoder=backbone.decoder,
            backbone=backbone.name,
            fingerprint=backbone.fingerprint,
        )

    @property
    def teacher_taps(self) -> tuple[int, ...] | None:
        """None for the default."""
        return (1, 2, 3, 4) if self.made_up else None


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
    search_share=0.25,
    batch_size=8,
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
    search_share=0.5,
    batch_size=4,
    made_up=True,
)


def _tell(progress: DumpProgress) -> None:
    click.echo(f"dumped {progress.num_samples} of {progress.total_samples} samples", err=True)


def _cut(teacher: Path, folder: Path, blocks: Sequence[int]) -> None:
    """The teacher with these blocks alone, in float32."""
    model: Any = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(blocks)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[block] for block in blocks]
    state = {}
    for name, value in model.state_dict().items():
        before, layers, rest = name.partition(".layers.")
        if layers:
            number, _, rest = rest.partition(".")
            if int(number) not in blocks:
                continue
            name = f"{before}.layers.{blocks.index(int(number))}.{rest}"
        state[name] = value
    student: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    student.load_state_dict(state)
    student.save_pretrained(folder)
    AutoTokenizer.from_pretrained(teacher).save_pretrained(folder)


def _letters(path: Path, count: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = ("brown", "wordnet", "word")
    lines = []
    for index in range(count):
        answer = f"{path.stem} {index * 7919 % 1000:03d}"
        messages = [
            {"role": "user", "content": f"what is number {index}"},
            {"role": "assistant", "content": answer},
        ]
        lines.append(json.dumps({"id": f"{kinds[index % 3]}-{index}", "messages": messages}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path
