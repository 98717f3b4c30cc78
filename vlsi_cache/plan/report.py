"""What a plan says."""

from __future__ import annotations

from vlsi_cache.jsonmodels import PathText, ReportModel

__all__ = ["Mend", "Plan", "PlannedStage", "VerbalizerParameters"]


class Mend(ReportModel):
    """One change that makes a stage fit, or brings it nearer."""

    setting: str
    """Recipe keys with their values, or the way of launching."""
    device_bytes: int
    """Memory of the stage on each device with it."""
    host_bytes: int | None = None
    """Memory of the first process's host, where weights are sharded: it loads them whole, and puts
    them together with AdamW's means for a checkpoint. Null for other mends."""
    fits: bool
    """Whether the stage then fits."""


class PlannedStage(ReportModel):
    """What one stage takes."""

    name: str
    """`teacher-verbalization`, `teacher-pass`, `student-verbalization`, `interaction` or
    `finetuning`."""
    done: bool
    """Whether the output folder holds its result already."""
    steps: int | None
    """Optimizer steps. Null for the teacher pass."""
    batch: tuple[int, int, int]
    """Samples, positions and response tokens of the batch that decides the memory."""
    device_bytes: int
    """The most memory on each device: the sum of the five below."""
    weights_bytes: int
    """The model. Weights that train are float32, and so are their own masters."""
    added_bytes: int
    """Verbalizers and adapters, and what is made once, such as the recorder's ordered head."""
    gradients_bytes: int
    """Gradients, and with several processes the buckets in which they are sent."""
    optimizer_bytes: int
    """AdamW's two means."""
    host_bytes: int | None
    """Memory that the first process's machine needs outside of its devices. On a CPU, of all its
    processes. Null where one process needs no more than its device."""
    working_bytes: int
    """Activations, and the objective's or the recorder's buffers."""
    trained_parameters: int
    """Parameters that train."""
    operations: float
    """Floating-point operations of the whole stage."""
    seconds: float | None
    """Time on all devices. Null without a probe or a stated throughput."""
    fits: bool | None
    """Whether the memory suffices. Null if no memory is known."""
    mends: list[Mend]
    """What makes a stage fit that does not."""


class VerbalizerParameters(ReportModel):
    """Parameters of all verbalizers of a model."""

    teacher: int | None
    """The teacher's. Null if no teacher is named."""
    student: int | None
    """The student's. Null if no student is named."""


class Plan(ReportModel):
    """What a run will take."""

    data: str
    """The data, as the recipe names it."""
    samples: int
    """Samples of the data."""
    rows_read: int
    """Rows that were rendered and tokenized. If they are fewer, they are spread over the data, and
    all counts of tokens are extrapolated from them."""
    unreadable_rows: int
    """How many of these cannot be read. `vlsi-cache check` names them."""
    tokens: int
    """Tokens of all samples."""
    response_tokens: int
    """Tokens that are learned."""
    longest: int
    """Tokens of the longest sample that was read."""
    cache: PathText
    """Folder or URL of the cache."""
    cache_bytes: int
    """Bytes on disk of the whole cache, the processor's copy included."""
    cache_bytes_measured: bool
    """Whether the size follows from shards that are there. Otherwise it follows from caches of
    another teacher (docs/benchmarks.md)."""
    samples_recorded: int
    """Samples whose shards are there."""
    verbalizer_parameters: VerbalizerParameters
    """Parameters of the verbalizers."""
    device: str
    """`cpu`, or `cuda` for an accelerator."""
    devices: int
    """Devices, each with a process of its own."""
    shards_student: bool
    """Whether the devices share the student's weights, by FSDP."""
    memory_bytes: int | None
    """Memory of each device. Null if it is not known. Processes on the CPU here have equal parts of
    it."""
    stages: list[PlannedStage]
    """The stages of the run, in order."""
    fits: bool | None
    """Whether every stage that is not done fits. Null if no memory is known."""
    disk_free_bytes: int | None
    """Free room where the cache will lie. Null for an object store."""
    notes: list[str]
    """What the figures leave out."""
