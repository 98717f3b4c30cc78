"""``Recipe``: all sections of a run, and the contradictions between them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from vlsi_cache.recipe.heldout import HeldOutSection, TrackerName
from vlsi_cache.recipe.learning import FinetuningSection, InteractionSection
from vlsi_cache.recipe.models import ModelSection, TeacherSection
from vlsi_cache.recipe.section import Contradiction, Section, UserPath
from vlsi_cache.recipe.sources import CacheSection, DataSection

__all__ = ["Recipe", "StageName"]

_DEVICE: Final = re.compile(r"auto|(cpu|cuda|mps|xpu|npu|hpu|mlu|musa)(:\d+)?")
StageName = Literal["verbalization", "interaction", "finetuning"]


class Recipe(Section):
    """A whole run: its inputs, its outputs, and the training of each stage."""

    teacher: TeacherSection = TeacherSection()
    """The model that is dumped."""
    student: ModelSection = ModelSection()
    """The model that is trained."""
    data: DataSection = DataSection()
    """The conversations."""
    cache: CacheSection = CacheSection()
    """Location and contents of the teacher's records."""
    interaction: InteractionSection = InteractionSection()
    """Stage two."""
    finetuning: FinetuningSection = FinetuningSection()
    """Stage three."""
    held_out: HeldOutSection = HeldOutSection()
    """Samples that the student is measured on while it trains."""
    report_to: list[TrackerName] = Field(default=[])
    """Trackers that get the figures of every stage through the Trainer: `wandb`, `trackio` or
    `mlflow`. TensorBoard events are always written to the folders of the stages."""
    run_name: str | None = None
    """Name of the run in the trackers, before the stage's. The output folder's by default."""
    stages: list[StageName] = Field(default=["verbalization", "interaction", "finetuning"])
    """Stages of the student to run. `[finetuning]` alone is plain fine-tuning, without a cache."""
    output: UserPath = Path("runs/vlsi")
    """Folder of everything that the run writes."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `mps`, …"""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of initialisation, data order, draws and matching."""

    @property
    def cache_path(self) -> str | Path:
        """Folder or URL of the cache."""
        return self.cache.path if self.cache.path is not None else self.output / "cache"

    @property
    def teacher_verbalizers_path(self) -> Path:
        """Folder of the teacher's verbalizers."""
        return self.teacher.verbalizers or self.output / "teacher-verbalizers"

    @property
    def student_verbalizers_path(self) -> Path:
        """Folder of the student's verbalizers."""
        return self.student.verbalizers or self.output / "student-verbalizers"

    @property
    def student_path(self) -> Path:
        """Folder of the finished student."""
        return self.output / "student"

    @property
    def student_folders(self) -> dict[StageName, Path]:
        """Folder of each stage of the student. Each stage builds on the ones before it."""
        return {
            "verbalization": self.student_verbalizers_path,
            "interaction": self.output / "interaction",
            "finetuning": self.output / "finetuning",
        }

    @property
    def reads_cache(self) -> bool:
        """Whether a stage of the student learns from the cache."""
        recorded = "finetuning" in self.stages and self.finetuning.record_weight > 0
        return "interaction" in self.stages or recorded

    @property
    def skips_failures(self) -> bool:
        """Whether samples that cannot be read are left out."""
        return "skip" in (self.data.on_error, self.cache.on_error)

    def contradictions(self) -> list[Contradiction]:
        """Find fields that contradict one another, as (path, problem)."""
        found = self.teacher.contradictions("teacher") + self.student.contradictions("student")
        found += self.data.contradictions("data")
        found += self.cache.contradictions("cache")
        found += self.interaction.contradictions("interaction")
        found += self.finetuning.contradictions("finetuning")
        if _DEVICE.fullmatch(self.device) is None:
            names = "auto, cpu, cuda, cuda:0, mps or xpu"
            found.append(("device", f"is not the name of a device such as {names}: {self.device}"))
        found += self.held_out.contradictions("held_out")
        found += self._held_out_contradictions()
        if self.finetuning.record_weight and self.interaction.tail == "bucket":
            found.append(("finetuning.record_weight", "cannot use interaction.tail: bucket"))
        if self.data.select is not None and self.interaction.follow:
            problem = "chooses among the samples of a whole cache, and interaction.follow has none"
            found.append(("data.select", problem))
        if self.student.dtype == "float16":
            found.append(("student.dtype", "float16 cannot be trained; use bfloat16 or float32"))
        if len(set(self.stages)) != len(self.stages):
            found.append(("stages", f"names a stage twice: {', '.join(self.stages)}"))
        if not self.stages:
            found.append(("stages", "is empty: name at least one stage"))
        needs_verbalizers = "interaction" in self.stages and self.interaction.inner != "none"
        if needs_verbalizers and "verbalization" not in self.stages:
            found.append(("stages", "has interaction without verbalization, which it builds on"))
        return found

    def _held_out_contradictions(self) -> list[Contradiction]:
        held_out, found = self.held_out, []
        if held_out.split is not None and held_out.path is None and self.data.path is None:
            found.append(("held_out.split", "needs held_out.path, since data.path is not given"))
        by_record = held_out.part is not None and held_out.metric == "divergence"
        if by_record and self.interaction.follow:
            problem = "cannot be divergence with interaction.follow: the records arrive later"
            found.append(("held_out.metric", problem))
        return found
