"""An evaluation for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vlsi_cache.errors import counted, printable
from vlsi_cache.evaluation.report import AnswerExample, AnswerFigures, Evaluation

__all__ = ["evaluation_table"]

_CATEGORIES: Final = {
    "all": "all",
    "yes/no": "yes or no",
    "number": "a number",
    "other": "another text",
}
"""What the recorded answers of a category are."""
_SHOWN: Final = 160
"""Most characters of a question or an answer."""


def evaluation_table(found: Evaluation) -> RenderableType:
    """Render an evaluation: counts, losses, the layers, and the answers."""
    return Group(*_parts(found))


def _parts(found: Evaluation) -> Iterator[RenderableType]:
    yield Text(printable(f"{found.model} on {found.data}"))
    left_out = f", {found.num_left_out:,} left out" if found.num_left_out else ""
    yield Text(
        f"{found.num_samples:,} samples{left_out}, {found.num_response_tokens:,} response tokens"
    )
    table = Table("figure", "nats per token", "95 % interval")
    table.add_row("label loss", f"{found.loss_nats:.4f}", _span(found.loss_interval))
    if found.divergence_nats is not None and found.divergence_interval is not None:
        figures = f"{found.divergence_nats:.4f}", _span(found.divergence_interval)
        name = "KL to the teacher"
        if found.num_compared < found.num_samples:
            name += f" ({found.num_compared:,} samples)"
        table.add_row(name, *figures)
    yield table
    if found.taps:
        layers = Table(
            "layer", "label loss", "agrees with the output", "acceptance", "tokens of 4 + 1"
        )
        for tap in found.taps:
            layers.add_row(
                str(tap.tap),
                f"{tap.loss_nats:.4f}",
                f"{tap.agreement:.1%}",
                f"{tap.acceptance:.3f}",
                f"{tap.tokens_per_verification:.2f}",
            )
        yield layers
    if found.answers:
        yield _answers(found.answers)
        yield Text(f"\n{counted(len(found.examples), 'answer')}, spread over the data:")
        yield _examples(found.examples)


def _answers(figures: Mapping[str, AnswerFigures]) -> Table:
    """Render the figures of all answers, and of each category where there are several."""
    answers = Table("answers", "questions", "accuracy", "95 % interval", "contained")
    for name, one in figures.items():
        if name != "all" and one.count == figures["all"].count:
            continue  # the row of all says the same
        low, high = one.accuracy_interval
        answers.add_row(
            _CATEGORIES.get(name, name),
            f"{one.count:,}",
            f"{one.accuracy:.1%}",
            f"{low:.1%} – {high:.1%}",
            f"{one.contains:.1%}",
        )
    return answers


def _examples(examples: Sequence[AnswerExample]) -> Table:
    """Render answers beside the recorded ones, each in lines of its own."""
    table = Table.grid(padding=(0, 2))
    for one in examples:
        verdict = "right" if one.right else "wrong"
        for label, text in (
            (f"{one.sample}: asked", one.question),
            ("recorded", one.recorded),
            (f"the model, {verdict}", one.given),
        ):
            line = printable(" ".join(text.split()), _SHOWN) or "(nothing)"
            table.add_row(Text(printable(label, _SHOWN), style="dim"), Text(line))
    return table


def _span(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.4f} – {interval[1]:.4f}"
