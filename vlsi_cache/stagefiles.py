"""What a stage leaves beside its result: how it was made, its metrics and its journal."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, FiniteFloat

__all__ = [
    "JOURNAL_FILE",
    "METRICS_FILE",
    "STAGE_FILE",
    "JournalLine",
    "MetricLine",
    "StageRecord",
    "SteppedLine",
]

STAGE_FILE: Final = "stage.json"
JOURNAL_FILE: Final = "matching.jsonl"
METRICS_FILE: Final = "metrics.jsonl"


class StageRecord(BaseModel):
    """What a stage was started with, and whether its result is whole."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    finished: bool
    """Whether the result is whole."""
    settings: dict[str, Any]
    """Everything that the result depends on."""
    weights: list[str] = []
    """Names of the result's files of weights."""
    num_bytes: dict[str, int] = {}
    """Their sizes: a file that was cut off is noticed before it is used."""


class SteppedLine(BaseModel):
    """A line that names its step."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    step: int
    """Optimizer step after which the line was written."""


class JournalLine(SteppedLine):
    """Means over the micro-batches since the line before. Rows are student taps."""

    student_taps: list[int]
    """Blocks of the student, in the order of the rows."""
    teacher_taps: list[int]
    """Blocks of the teacher, in the order of the columns."""
    share: list[list[float]]
    """Mean share of each teacher tap in a student tap's loss. A drawn matching gives all of it to
    one teacher tap, so the mean is how often that tap was drawn. Rows sum to 1."""
    divergence: list[list[float]]
    """Mean divergence of all pairs, matched or not, in nats (`l2`: without a unit)."""
    choice: list[float] | None = None
    """How often each student tap had several candidates. It is null for strategies without a
    temperature."""
    temperature: list[float | None] | None = None
    """Mean temperature of each student tap's softmax over several candidates. It is null where a
    tap never had several, and for strategies without a temperature."""


class MetricLine(SteppedLine):
    """What a stage logged at one step, and the pace of the steps since the line before."""

    metrics: dict[str, FiniteFloat]
    """Name → value, as logged. Nothing is left out but values that are not finite."""
    num_steps: int = 0
    """Steps since the line before. A line of held-out figures has none."""
    seconds: float = 0.0
    """Seconds of those steps, without those that saving and evaluating took."""
    waiting_seconds: float = 0.0
    """Seconds of them in which the main process waited for its next batch."""
    num_tokens: int = 0
    """Response tokens of those steps, in all processes."""
    device_bytes: int | None = None
    """Most memory of the accelerator that tensors of the main process took at once, so far. It is
    null without one."""
    host_bytes: int | None = None
    """Most memory that the main process took at once, so far."""
