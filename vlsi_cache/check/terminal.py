"""A check's findings for the terminal. What is learned is marked by brackets, too."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vlsi_cache.check.report import CheckFailure, CheckReport, LearnedSample
from vlsi_cache.data.reading.forms.nearmiss import with_near_miss
from vlsi_cache.errors import counted, printable

__all__ = ["check_table"]

_MOST_KINDS = 20
_MOST_OF_A_KIND = 3
_MOST_CHARACTERS = 1200


def check_table(report: CheckReport) -> RenderableType:
    """Render a report: samples, counts, columns that nothing reads, and then what would fail."""
    return Group(*_samples(report), _counts(report), Text(), *_failures(report))


def _samples(report: CheckReport) -> Iterator[RenderableType]:
    if report.samples:
        yield Text("What is learned stands in ⟦ ⟧.")
    for sample in report.samples:
        yield Text(f"\nsample {sample.sample}", style="bold")
        yield _marked(sample)
    yield Text()


def _marked(sample: LearnedSample) -> Text:
    text = Text()
    for run in sample.runs:
        shown = "".join(
            char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in run.text
        )
        if len(shown) > _MOST_CHARACTERS:
            half = _MOST_CHARACTERS // 2
            shown = f"{shown[:half]} … {shown[-half:]}"
        if run.learned:
            text.append(f"⟦{shown}⟧", style="bold green")
        else:
            text.append(shown)
    return text


def _counts(report: CheckReport) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    rows = [("data", report.data)]
    for model in report.models:
        limit = (
            "no limit"
            if model.max_length is None
            else f"at most {counted(model.max_length, 'token')}"
        )
        rows.append((model.role, f"{model.name}, {limit}"))
    rows += [
        ("rows", f"{report.rows:,}, {report.sound_rows:,} of them sound{_beyond(report)}"),
        ("tokens", f"{report.tokens:,}, {report.response_tokens:,} of them learned"),
        ("longest", counted(report.longest, "token")),
        ("columns not read", ", ".join(map(with_near_miss, report.columns_not_read)) or "none"),
        ("pictures", "decoded" if report.images_decoded else "sizes read, not decoded"),
    ]
    if report.repeated_ids:
        rows.append(("repeated ids", _repeated(report)))
    if report.changed_samples:
        rows.append(
            ("control tokens", f"spelt in {counted(report.changed_samples, 'sample')}, and broken")
        )
    rows += [("no effect", setting) for setting in report.idle_settings]
    for name, value in rows:
        table.add_row(name, Text(printable(value, len(value))))
    return table


def _beyond(report: CheckReport) -> str:
    """What the limit leaves out."""
    if not report.rows_not_read:
        return ""
    return f"; {counted(report.rows_not_read, 'more row')} not read (data.limit)"


def _repeated(report: CheckReport) -> str:
    is_one = report.repeated_ids == 1
    has = "1 sample has" if is_one else f"{report.repeated_ids:,} samples have"
    return f"{has} the id of another; a run numbers {'it' if is_one else 'them'}, such as ID#2"


def _failures(report: CheckReport) -> Iterator[RenderableType]:
    if not report.failures:
        yield Text("Nothing would fail.", style="green")
        return
    ordered = sorted(report.failures, key=lambda failure: failure.kind)
    kinds = [list(alike) for _, alike in groupby(ordered, key=lambda failure: failure.kind)]
    kinds.sort(key=len, reverse=True)
    noun = _noun(report)
    if report.would_end_a_run:
        yield Text(f"{noun}:", style="bold red")
    else:
        yield Text(f"{noun}, which data.on_error: skip leaves out:", style="yellow")
    for alike in kinds[:_MOST_KINDS]:
        yield from _kind(alike, names_models=len(report.models) > 1)
    if len(kinds) > _MOST_KINDS:
        more = counted(len(kinds) - _MOST_KINDS, "more kind")
        yield Text(f"and {more}; --json lists all")


def _noun(report: CheckReport) -> str:
    """The number of failures, and of rows that are not sound where it is another."""
    noun = counted(len(report.failures), "failure")
    if report.failed_rows in (0, len(report.failures)):
        return noun
    rows = counted(report.failed_rows, "row")
    if all(failure.sample is not None for failure in report.failures):
        return f"{noun} in {rows}"
    return f"{noun}, and {rows} that {'is' if report.failed_rows == 1 else 'are'} not sound"


def _kind(alike: list[CheckFailure], *, names_models: bool) -> Iterator[RenderableType]:
    yield Text(f"{len(alike):,} × {alike[0].kind}")
    for failure in alike[:_MOST_OF_A_KIND]:
        models = f", {' and '.join(failure.models)}" if names_models and failure.models else ""
        yield Text(f"  {failure.where}{models}: {failure.why}")
    if len(alike) > _MOST_OF_A_KIND:
        yield Text(f"  and {len(alike) - _MOST_OF_A_KIND:,} more; --json lists all")
