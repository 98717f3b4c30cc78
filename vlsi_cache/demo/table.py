"""The demo's result: a frozen summary, as JSON or as a table."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from pydantic import BaseModel, ConfigDict
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vlsi_cache.demo.dataset import WRONG_SHARE
from vlsi_cache.evaluation.intervals import Interval

__all__ = [
    "DemoAccuracy",
    "DemoDivergence",
    "DemoIntervals",
    "DemoPair",
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
    """The student after verbalization, interaction and fine-tuning."""


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


class DemoPair(_Result):
    """Two students of one seed, on the same held-out questions."""

    seed: int
    """Seed of their weights and of their training."""
    finetuned: float
    """Accuracy of the student after fine-tuning only."""
    finetuned_interval: Interval
    """Its 95 % interval."""
    finetuned_nats: float
    """Its divergence from the teacher."""
    distilled: float
    """Accuracy of the distilled student."""
    distilled_interval: Interval
    """Its 95 % interval."""
    distilled_nats: float
    """Its divergence from the teacher."""
    gain: float
    """Accuracy of the distilled student less that of the fine-tuned one."""
    gain_interval: Interval
    """95 % interval of the gain (Newcombe, 1998)."""


class DemoPaths(_Result):
    """Paths of the results."""

    cache: str
    """The teacher's record."""
    student: str
    """The distilled student, an ordinary checkpoint."""
    statistics: str
    """Statistics of the cache, as `vlsi-cache inspect --json` prints them."""
    page: str
    """A page of the cache's figures, and of what each layer says."""
    recipe: str
    """The recipe of the run."""


class DemoSummary(_Result):
    """The demo's result."""

    accuracy: DemoAccuracy
    """Accuracies by generation on held-out images."""
    accuracy_interval: DemoIntervals
    """Intervals of the accuracies."""
    gain: float
    """Accuracy of the distilled student less that of the fine-tuned one."""
    gain_interval: Interval
    """95 % interval of the gain (Newcombe, 1998)."""
    divergence_nats: DemoDivergence
    """Divergences from the teacher."""
    pairs: list[DemoPair]
    """All pairs of students. The figures above are those of the first."""
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
    cpu_seconds: float
    """CPU time of all processes, summed likewise."""


def demo_table(summary: DemoSummary) -> RenderableType:
    """Build the table that people read."""
    parts: list[RenderableType] = [_models(summary)]
    if len(summary.pairs) > 1:
        parts.append(_pairs(summary.pairs))
    paths = summary.paths
    return Group(
        *parts,
        Text(_verdict(summary)),
        Text(
            f"\n{summary.num_questions} questions; both students trained {summary.student_steps} "
            f"steps; cache {summary.bytes_per_token_tap:.1f} bytes per token and tap; "
            f"{summary.seconds:.0f} s"
        ),
        Text(f"cache    {paths.cache}"),
        Text(f"student  {paths.student}"),
        Text(f"recipe   {paths.recipe}"),
        Text(f"page     {paths.page}"),
        Text(f"\nopen the page, or look inside: vlsi-cache inspect {paths.cache}"),
        Text("next, with your own: vlsi-cache check --teacher … --student … --data …"),
    )


def _models(summary: DemoSummary) -> Table:
    accuracy = summary.accuracy
    interval = summary.accuracy_interval
    divergence = summary.divergence_nats
    table = Table(title="easy-VQA, held-out images", title_justify="left")
    table.add_column("model")
    table.add_column("learns from")
    table.add_column("right", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("nats to teacher", justify="right", max_width=7)
    hurried = f"answers, {WRONG_SHARE:.0%} wrong"
    rows = (
        ("no look at the image", "", accuracy.floor, "", ""),
        ("teacher", "right answers", accuracy.teacher, _span(interval.teacher), "0"),
        (
            "student, fine-tuned",
            hurried,
            accuracy.finetuned,
            _span(interval.finetuned),
            f"{divergence.finetuned:.3f}",
        ),
        (
            "student, distilled",
            "the same, and cache",
            accuracy.distilled,
            _span(interval.distilled),
            f"{divergence.distilled:.3f}",
        ),
    )
    for name, source, share, span, nats in rows:
        table.add_row(name, source, f"{share:.1%}", span, nats)
    return table


def _pairs(pairs: Sequence[DemoPair]) -> Table:
    table = Table(title="pairs of students, each of its own seed", title_justify="left")
    for name in ("seed", "fine-tuned", "distilled", "gain, points", "95 % interval"):
        table.add_column(name, justify="right")
    for pair in pairs:
        least, most = pair.gain_interval
        table.add_row(
            str(pair.seed),
            f"{pair.finetuned:.1%}",
            f"{pair.distilled:.1%}",
            f"{100 * pair.gain:+.1f}",
            f"{100 * least:+.1f} – {100 * most:+.1f}",
        )
    return table


def _verdict(summary: DemoSummary) -> str:
    """Say what the figures allow, and no more."""
    if len(summary.pairs) > 1:
        return _verdict_on_all(summary.pairs)
    least, most = (100 * one for one in summary.gain_interval)
    kind = "more" if summary.gain >= 0 else "less"
    chance = "" if least > 0 or most < 0 else ", which may be chance"
    return (
        f"With the teacher's record the student is {abs(100 * summary.gain):.1f} points {kind} "
        f"accurate than without it{chance} (95 % interval {least:+.1f} to {most:+.1f})."
    )


def _verdict_on_all(pairs: Sequence[DemoPair]) -> str:
    gains = [100 * pair.gain for pair in pairs]
    num_sure = sum(pair.gain_interval[0] > 0 for pair in pairs)
    return (
        f"The teacher's record adds {min(gains):+.1f} to {max(gains):+.1f} points, "
        f"{mean(gains):+.1f} on average. It is more than chance in {num_sure} of {len(pairs)} "
        "pairs."
    )


def _span(interval: Interval) -> str:
    return f"{interval[0]:.1%} – {interval[1]:.1%}"
