"""The demo's result: a frozen summary, as JSON or as a table."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vlsi_cache.evaluation.intervals import Interval, difference_interval

__all__ = [
    "DemoAccuracy",
    "DemoDivergence",
    "DemoIntervals",
    "DemoPaths",
    "DemoSummary",
    "demo_table",
]


class _Result(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class DemoAccuracy(_Result):
    """Shares of held-out questions answered rightly by generation."""

    floor: float
    """Accuracy without a look at the image: each question's commonest answer in training."""
    teacher: float
    """The teacher."""
    finetuned: float
    """The student after fine-tuning only."""
    distilled: float
    """The student after verbalization and interaction."""


class DemoIntervals(_Result):
    """95 % Wilson intervals of the accuracies."""

    teacher: Interval
    """The teacher's."""
    finetuned: Interval
    """The fine-tuned student's."""
    distilled: Interval
    """The distilled student's."""


class DemoDivergence(_Result):
    """KL(teacher ‖ student) at the output on held-out conversations, nats per response token."""

    finetuned: float
    """Divergence of the student after fine-tuning only."""
    distilled: float
    """Divergence of the distilled student."""


class DemoPaths(_Result):
    """Paths of the results."""

    cache: str
    """The teacher's record."""
    student: str
    """The distilled student, an ordinary checkpoint."""
    statistics: str
    """Statistics of the cache, as `vlsi-cache inspect --json` prints them."""
    recipe: str
    """The recipe of the run."""


class DemoSummary(_Result):
    """The demo's result."""

    accuracy: DemoAccuracy
    """Accuracies by generation on held-out images."""
    accuracy_interval: DemoIntervals
    """Intervals of the accuracies."""
    divergence_nats: DemoDivergence
    """Divergences from the teacher."""
    num_questions: int
    """Number of held-out questions."""
    student_steps: int
    """Number of optimizer steps of the student's weights, the same in both arms."""
    bytes_per_token_tap: float
    """Size of the cache per response token and tap."""
    paths: DemoPaths
    """Results on disk."""
    seconds: float
    """Wall time, summed over the runs that a resumed demo took."""


def demo_table(summary: DemoSummary) -> RenderableType:
    """Build the table that people read."""
    accuracy = summary.accuracy
    interval = summary.accuracy_interval
    divergence = summary.divergence_nats
    table = Table(title="easy-VQA, held-out images", title_justify="left")
    table.add_column("model")
    table.add_column("accuracy", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("KL to teacher, nats/token", justify="right")
    table.add_row("no look at the image", f"{accuracy.floor:.1%}", "", "")
    table.add_row("teacher", f"{accuracy.teacher:.1%}", _span(interval.teacher), "0")
    table.add_row(
        "student, fine-tuned only",
        f"{accuracy.finetuned:.1%}",
        _span(interval.finetuned),
        f"{divergence.finetuned:.4f}",
    )
    table.add_row(
        "student, distilled",
        f"{accuracy.distilled:.1%}",
        _span(interval.distilled),
        f"{divergence.distilled:.4f}",
    )
    return Group(
        table,
        Text(
            f"{summary.num_questions} questions; both students trained {summary.student_steps} "
            f"steps; cache {summary.bytes_per_token_tap:.1f} bytes per token and tap; "
            f"{summary.seconds:.0f} s"
        ),
        Text(_verdict(summary)),
        Text(f"cache       {summary.paths.cache}"),
        Text(f"student     {summary.paths.student}"),
        Text(f"statistics  {summary.paths.statistics}"),
        Text(f"recipe      {summary.paths.recipe}"),
    )


def _verdict(summary: DemoSummary) -> str:
    """Say what the figures allow, and no more."""
    divergence = summary.divergence_nats
    change = divergence.distilled / divergence.finetuned - 1
    nearer = "nearer to" if change < 0 else "further from"
    return (
        f"{_accuracy_verdict(summary)} The distilled one is {nearer} the teacher: its divergence "
        f"is {abs(change):.0%} {'lower' if change < 0 else 'higher'}."
    )


def _accuracy_verdict(summary: DemoSummary) -> str:
    accuracy = summary.accuracy
    interval = summary.accuracy_interval
    least, most = difference_interval(
        accuracy.distilled, interval.distilled, accuracy.finetuned, interval.finetuned
    )
    if least > 0:
        return "The distilled student is more accurate than the fine-tuned one."
    if most < 0:
        return "The distilled student is less accurate than the fine-tuned one."
    return "In accuracy the two students do not differ by more than chance on this small task."


def _span(interval: Interval) -> str:
    return f"{interval[0]:.1%} – {interval[1]:.1%}"
