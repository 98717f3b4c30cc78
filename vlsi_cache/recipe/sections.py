"""What a recipe may say: its sections, their defaults and their contradictions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

__all__ = [
    "CacheSection",
    "Comparison",
    "DataSection",
    "FinetuningSection",
    "InteractionSection",
    "LoraSection",
    "MatchingSection",
    "MatchingStrategy",
    "ModelSection",
    "Recipe",
    "Schedule",
    "Section",
    "StageName",
    "VerbalizationSection",
    "VerbalizerSection",
]


def _at_home(name: str) -> str:
    return str(Path(name).expanduser()) if name.startswith("~") else name


def _path_unless_url(value: object) -> object:
    is_path = isinstance(value, str) and "://" not in value
    return Path(str(value)).expanduser() if is_path else value


StageName = Literal["verbalization", "interaction", "finetuning"]

Comparison = Literal["forward", "reverse", "js", "skewed", "l2", "ce", "none"]
"""How the student's distribution is compared with the teacher's, or with the labels (`ce`)."""

MatchingStrategy = Literal[
    "random", "uniform", "bottom-1", "bottom-3", "multinomial", "expected", "shortest"
]

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
UserPath = Annotated[Path, AfterValidator(Path.expanduser)]
"""A path; ``~`` is the user's home."""
CacheAddress = Annotated[Path | str, BeforeValidator(_path_unless_url)]
"""A path, or the URL of an object store, which no path may mangle."""
UserName = Annotated[str, AfterValidator(_at_home)]
"""A folder or a hub name; ``~`` is the user's home."""
Contradiction = tuple[str, str]
"""The path of a field, and what is wrong with it beside the others."""


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, documented beneath each field."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class Schedule(Section):
    """How long and how fast one stage trains."""

    steps: Positive | None = None
    """Optimizer steps. Excludes `epochs`."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the data. Excludes `steps`; 1 if neither is given."""
    batch_size: Positive = 8
    """Samples per device and forward pass."""
    gradient_accumulation: Positive = 1
    """Forward passes per optimizer step."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate of AdamW."""
    final_learning_rate: Annotated[float, Field(ge=0)] = 1e-6
    """Learning rate that the cosine ends at."""
    warmup_steps: NonNegative = 0
    """Steps of linear warm-up before the cosine."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradients are clipped to this norm; 0 turns clipping off."""
    log_every: Positive = 10
    """Steps between two lines of metrics."""
    save_every: Positive = 500
    """Steps between two checkpoints, from which an interrupted stage goes on."""
    workers: NonNegative = 0
    """Processes that prepare batches beside each training process."""
    gradient_checkpointing: bool = False
    """Recompute the backbone's activations in the backward pass, for memory."""

    def decisive(self) -> dict[str, object]:
        """The settings that the trained weights follow from, as JSON values."""
        return self.model_dump(mode="json", exclude=self._spared())

    def _spared(self) -> set[str]:
        return {"log_every", "save_every", "workers", "gradient_checkpointing"}

    def contradictions(self, path: str) -> list[Contradiction]:
        """Fields that exclude one another, as (path, fault)."""
        found = []
        if self.steps is not None and self.epochs is not None:
            found.append((f"{path}.epochs", "contradicts steps: give one of the two"))
        if self.steps is not None and self.warmup_steps > self.steps:
            found.append((f"{path}.warmup_steps", f"is above steps ({self.steps})"))
        if self.final_learning_rate > self.learning_rate:
            found.append(
                (f"{path}.final_learning_rate", f"is above learning_rate ({self.learning_rate:g})")
            )
        return found


class VerbalizerSection(Section):
    """The small network that reads one tap as a vocabulary distribution."""

    structure: Literal["mlp", "verb_ffn", "ffn", "decoder"] = "verb_ffn"
    """`verb_ffn`: gated, three D×D maps (the paper's); `mlp`: one D×D map; `ffn`: the same gate
    with the backbone's own expansion; `decoder`: a whole decoder block."""
    depth: Literal[1, 2] = 1
    """The structure once, or stacked twice."""
    residual: bool = True
    """Add the structure to the tap, so that an untrained verbalizer is the logit lens."""


class VerbalizationSection(Schedule):
    """Stage one: training the verbalizers of one model."""

    max_grad_norm: Annotated[float, Field(ge=0)] = 0.0
    """Gradients are clipped to this norm; 0 turns clipping off (taps are independent, a common
    norm would tie them)."""
    target: Literal["label", "final"] = "label"
    """`label`: cross-entropy to the next response token; `final`: KL to the model's own output."""


class ModelSection(Section):
    """A teacher or a student."""

    model: UserName | None = None
    """`from_pretrained` name or folder, its processor included."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Weights' dtype; `auto` takes the checkpoint's own."""
    taps: list[int] | None = None
    """0-based indices of the decoder blocks to read; every 4th from 2 by default."""
    verbalizers: UserPath | None = None
    """Folder of trained verbalizers; they are trained if none is given."""
    verbalizer: VerbalizerSection = VerbalizerSection()
    """Structure of the verbalizers to train."""
    verbalization: VerbalizationSection = VerbalizationSection()
    """Schedule of their training."""

    def contradictions(self, path: str) -> list[Contradiction]:
        """Repeated taps, and the schedule's own contradictions."""
        found = self.verbalization.contradictions(f"{path}.verbalization")
        if self.taps is not None and len(set(self.taps)) != len(self.taps):
            found.append((f"{path}.taps", f"names a block twice: {self.taps}"))
        if self.taps is not None and self.verbalizers is not None:
            found.append((f"{path}.taps", "contradicts verbalizers, which name their own taps"))
        if self.taps is not None and not self.taps:
            found.append((f"{path}.taps", "is empty: name at least one block, or leave it out"))
        return found


class DataSection(Section):
    """Conversations that teacher and student both read."""

    path: UserName | None = None
    """JSON or JSONL file, folder saved by `datasets`, or hub name."""
    split: str = "train"
    """Split of a `datasets` source."""
    limit: Positive | None = None
    """Only the first so many samples."""
    max_length: Positive | None = None
    """Most tokens of one conversation, image tokens included; the model's own limit by default."""


class CacheSection(Section):
    """The teacher's record."""

    path: CacheAddress | None = None
    """Folder of the cache, or a URL such as `s3://bucket/prefix`; `<output>/cache` by default."""
    k: NonNegative = 0
    """Most likely tokens kept per response token and tap. 0 leaves draws alone, which tell more
    per byte; the tails `bucket` and `renormalize` need some."""
    m: Annotated[int, Field(ge=0, le=255)] = 14
    """Tokens drawn from the rest: from the whole distribution where k is 0."""
    samples_per_shard: Positive = 512
    """Conversations per shard: what a broken run has to redo at most."""
    batch_size: Positive = 8
    """Conversations per forward pass of the teacher."""
    workers: NonNegative = 0
    """Processes that prepare the teacher's batches."""
    on_error: Literal["stop", "skip"] = "stop"
    """What a sample does that cannot be read (a broken image, too long, or a tap that is not
    finite): `stop` the run, or be recorded without tokens, with the reason, and `skip`ped."""
    max_failures_in_a_row: Positive = 16
    """With `skip`: more than so many samples that fail one after another stop the run."""

    def contradictions(self, path: str) -> list[Contradiction]:
        """A record of nothing."""
        return [(f"{path}.m", "is 0 like k: nothing is left to record")] * (self.k + self.m == 0)


class MatchingSection(Section):
    """Which teacher tap a student tap learns from (Algorithm 1 and its ablation)."""

    strategy: MatchingStrategy = "multinomial"
    """How candidates are chosen by their divergence: the paper's `multinomial` (Algorithm 1) and
    its ablation; `expected`: all candidates, each by the probability that `multinomial` gives it;
    `shortest`: the ascending path of least total divergence."""
    search_range: bool = True
    """Student tap s of L_s meets only teacher taps s … L_t−L_s+s."""
    order: bool = True
    """A student tap meets only teacher taps above the one matched before. Needs `search_range`."""
    adaptive_temperature: bool = True
    """Temperature from the spread of the divergences; off means 1, or the number given."""
    temperature: Literal["paper", "scale_free"] | Annotated[float, Field(gt=0)] = "paper"
    """`paper`: 2/(max−min); `scale_free`: (max−min)/2; or a fixed number."""
    granularity: Literal["batch", "sample"] = "batch"
    """One matching per micro-batch, or one per sample."""

    def contradictions(self, path: str) -> list[Contradiction]:
        """`order` without the room that `search_range` keeps, `shortest` without `order`."""
        found = []
        if self.order and not self.search_range:
            found.append((f"{path}.order", "needs search_range: true, or set order: false too"))
        if self.strategy == "shortest" and not self.order:
            found.append((f"{path}.strategy", "shortest needs order: true, since its path ascends"))
        return found


class LoraSection(Section):
    """The student's low-rank adapters during interaction."""

    rank: Positive = 64
    """Rank r of every adapter."""
    alpha: Positive = 64
    """Scale numerator: updates are scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the adapters."""


class InteractionSection(Schedule):
    """Stage two: learning from the cache."""

    workers: NonNegative = 1
    """Processes that prepare batches beside each training process, ahead of it."""
    follow: bool = False
    """Train on a cache that is still being written: on what is there, waiting for more."""
    follow_timeout_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """With `follow`: how long no new shard may come before the stage gives up."""
    inner: Comparison = "forward"
    """What each student tap minimises against its teacher taps: `forward` KL(teacher ‖ student);
    `reverse` KL(student ‖ teacher), `js`, `skewed` and `l2`, which need `tail: bucket`; `ce` the
    labels instead of the teacher; `none` nothing, which leaves plain logit distillation."""
    inner_weight: Annotated[float, Field(gt=0)] = 0.25
    """Weight of every student tap's loss in the sum, beside 1 for the output's. The paper adds them
    up (1); with three taps a quarter ended nearer to labels and teacher (docs/results.md)."""
    output: Comparison = "forward"
    """The same at the model's output."""
    tail: Literal["sample", "bucket", "renormalize"] = "sample"
    """What stands for the teacher's tokens that are not among its k most likely: `sample` the
    drawn ones, unbiased; `bucket` one bin of all others, a lower bound; `renormalize` nothing, the
    k being scaled to sum to 1, which is biased. The last two need a cache with `cache.k` ≥ 1."""
    skew: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the teacher in the mixture that `skewed` compares it with."""
    matching: MatchingSection = MatchingSection()
    """Layer matching."""
    lora: LoraSection | None = LoraSection()
    """Adapters on every linear map of the decoder blocks. `null`: none; the blocks' own weights
    train instead, in float32 unless `student.dtype` says otherwise, which takes gradients and the
    optimizer's state for each."""

    def contradictions(self, path: str) -> list[Contradiction]:
        """The schedule's and the matching's contradictions, and comparisons that cannot be."""
        found = Schedule.contradictions(self, path)
        found += self.matching.contradictions(f"{path}.matching")
        for name in ("inner", "output"):
            kind = getattr(self, name)
            if kind in ("reverse", "js", "skewed", "l2") and self.tail != "bucket":
                found.append((f"{path}.{name}", f"{kind} needs tail: bucket, not {self.tail}"))
        if self.inner == self.output == "none":
            found.append((f"{path}.output", "is none like inner: nothing is left to learn"))
        return found

    def _spared(self) -> set[str]:
        # what came when is a matter of the order, like the number of processes
        return super()._spared() | {"follow", "follow_timeout_seconds"}


class FinetuningSection(Schedule):
    """Stage three: every parameter, cross-entropy."""

    train_vision_tower: bool = True
    """Train the parts outside the decoder too (vision tower and projector)."""


class Recipe(Section):
    """A whole run: what is read, what is written, how each stage trains."""

    teacher: ModelSection = ModelSection()
    """The model that is dumped."""
    student: ModelSection = ModelSection()
    """The model that is trained."""
    data: DataSection = DataSection()
    """The conversations."""
    cache: CacheSection = CacheSection()
    """Where and how the teacher's record is kept."""
    interaction: InteractionSection = InteractionSection()
    """Stage two."""
    finetuning: FinetuningSection = FinetuningSection()
    """Stage three."""
    stages: list[StageName] = ["verbalization", "interaction", "finetuning"]
    """Stages of the student to run; `[finetuning]` alone is plain fine-tuning, without a cache."""
    output: UserPath = Path("runs/vlsi")
    """Folder of everything the run writes."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `mps`, …"""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of initialisation, data order, tail draws and matching."""

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

    def contradictions(self) -> list[Contradiction]:
        """Every pair of fields that cannot hold together, as (path, fault)."""
        found = self.teacher.contradictions("teacher") + self.student.contradictions("student")
        found += self.cache.contradictions("cache")
        found += self.interaction.contradictions("interaction")
        found += self.finetuning.contradictions("finetuning")
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
