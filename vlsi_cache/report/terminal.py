"""Summaries as terminal tables that read well at 80 columns."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vlsi_cache.errors import printable
from vlsi_cache.manifest import OUTPUT_TAP, Sampling
from vlsi_cache.report.sample import SampleView, TapGuess
from vlsi_cache.store.cache.summary import CacheSummary

__all__ = ["bytes_text", "sample_table", "summary_table"]

_FEW_TAPS = 5
_NAMED_SHARDS = 10
_NAME = 200
"""Most characters of a name or a token that are shown."""
_FEW_CAPTION = (
    "Each tap's most likely token, with its probability (its share of the draws, if there are only "
    "draws). Bold: the response token."
)
_MANY_CAPTION = (
    "Runs of taps with the same most likely token, and its probability at the last of them (its "
    "share of the draws, if there are only draws). Bold: the response token."
)


def summary_table(summary: CacheSummary) -> RenderableType:
    """A cache's settings, and a row per tap. What is missing comes first."""
    lacking = _lacking(summary)
    first = [Text(lacking, style="bold yellow"), Text()] if lacking else []
    return Group(*first, _settings(summary), Text(), _taps(summary))


def sample_table(view: SampleView) -> RenderableType:
    """A row per response token, with the most likely token of each tap.

    Few taps get a column each. Many would not fit (a 72B teacher has 21), so a run of taps that
    agree is written once. A sample that failed has only its reason.
    """
    if view.failure is not None:
        name, failure = printable(view.sample_id, _NAME), printable(view.failure)
        return Text(f"sample {name} could not be read by the teacher: {failure}")
    few = len(view.taps) <= _FEW_TAPS
    table = Table(
        title=Text(f"sample {printable(view.sample_id, _NAME)}"),
        title_justify="left",
        caption=_FEW_CAPTION if few else _MANY_CAPTION,
        caption_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    table.add_column("response", overflow="fold", max_width=20)
    for heading in [*map(_tap_name, view.taps)] if few else ["taps"]:
        table.add_column(heading, overflow="fold")
    for token in view.tokens:
        runs = _runs(token.guesses, joined=not few)
        cells = [_guess(run, token.token_id, named=not few) for run in runs]
        columns = cells if few else [Columns(cells, padding=(0, 2))]
        table.add_row(Text(_visible(token.text)), *columns)
    return table


def _lacking(summary: CacheSummary) -> str:
    """Say what an unfinished cache lacks, or nothing."""
    if summary.complete and summary.indexed:
        return ""
    command = "merge" if summary.num_parts else "dump-teacher"
    mend = f"Run {command} again as before; it goes on where it stopped."
    if summary.complete:
        return f"Unfinished: every shard is there, and the index is not written yet. {mend}"
    missing = summary.missing_shards
    named = ", ".join(map(str, missing[:_NAMED_SHARDS]))
    more = " …" if len(missing) > _NAMED_SHARDS else ""
    return (
        f"Incomplete: {len(missing):,} of {summary.num_shards:,} shards are missing "
        f"({named}{more}). All figures are of the others. {mend}"
    )


def _settings(summary: CacheSummary) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    share = summary.num_shards_present / max(summary.num_shards, 1)
    state = "complete" if summary.complete else f"incomplete ({share:.0%})"
    if summary.num_parts:
        state = f"{state}, merged of {summary.num_parts:,} caches"
    sampling = summary.sampling
    for name, value in (
        ("cache", summary.path),
        ("teacher", f"{summary.teacher.name} ({summary.teacher.model_type}, {summary.dtype})"),
        ("tokenizer", f"{summary.tokenizer.vocab_size:,} ids"),
        ("data", summary.dataset),
        ("samples", _samples(summary)),
        ("tokens", f"{summary.num_tokens:,} of responses"),
        ("shards", f"{_of(summary.num_shards_present, summary.num_shards)}, {state}"),
        ("per token, tap", f"{_kept(sampling)} (seed {sampling.seed})"),
        ("size", _size(summary)),
    ):
        table.add_row(name, Text(printable(value)))
    return table


def _kept(sampling: Sampling) -> str:
    if sampling.k == 0:
        return f"{sampling.m} drawn from the whole distribution"
    return f"{sampling.k} most likely + {sampling.m} drawn from the rest"


def _samples(summary: CacheSummary) -> str:
    text = _of(summary.num_samples, summary.num_samples_total)
    if not summary.failures:
        return text
    name, reason = next(iter(summary.failures.items()))
    shown = f"'{printable(name, _NAME)}': {printable(reason)}"
    return f"{text}; {len(summary.failures):,} of them failed, the first {shown}"


def _size(summary: CacheSummary) -> str:
    text = bytes_text(summary.bytes_total)
    if summary.bytes_per_token_tap is None:
        return text
    return (
        f"{text}, {summary.bytes_per_token_tap:.1f} bytes per token and tap: "
        f"{summary.compression_ratio:.1f}× against plain arrays, "
        f"{summary.dense_ratio:,.0f}× against dense bfloat16 logits"
    )


def _taps(summary: CacheSummary) -> RenderableType:
    if not summary.taps:
        return Text("No shard is written yet.")
    drawn = summary.sampling.k == 0
    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        caption="Means over response tokens. Top token: share of tokens at which the tap's most "
        "likely token is the output's, or the label. "
        + (
            "It is the token drawn most often. "
            if drawn
            else "Mass: probability of the most likely tokens kept. "
        )
        + "Label kept: share of tokens whose label is among the entries.",
        caption_justify="left",
    )
    table.add_column("tap", justify="right")
    for heading in (
        "entropy\n(nats)",
        *(() if drawn else ("mass\nkept",)),
        "label log-p\n(nats)",
        "top token is\nthe output's",
        "top token is\nthe label",
        "label\nkept",
    ):
        table.add_column(heading, justify="right")
    for tap in summary.taps:
        mass = () if tap.captured_mass is None else (f"{tap.captured_mass:.1%}",)
        table.add_row(
            _tap_name(tap.tap),
            f"{tap.entropy_nats:.3f}",
            *mass,
            f"{tap.label_log_prob_nats:.3f}",
            f"{tap.agreement_with_final:.1%}",
            f"{tap.agreement_with_label:.1%}",
            f"{tap.label_in_record:.1%}",
        )
    return table


def _runs(guesses: Sequence[TapGuess], *, joined: bool) -> list[list[TapGuess]]:
    if not joined:
        return [[guess] for guess in guesses]
    return [list(run) for _, run in itertools.groupby(guesses, key=lambda guess: guess.token_id)]


def _guess(run: Sequence[TapGuess], label: int, *, named: bool) -> Text:
    first = run[0]
    last = run[-1]
    text = Text()
    if named:
        names = dict.fromkeys([_tap_name(first.tap), _tap_name(last.tap)])
        text.append("–".join(names) + " ", style="dim")
    text.append(_visible(last.text), style="bold" if last.token_id == label else "")
    text.append(f" {last.probability:.2f}", style="dim")
    return text


def _visible(text: str) -> str:
    """A token's text in one line, with visible spaces and control characters."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:_NAME])
    more = " …" if len(text) > _NAME else ""
    return (shown.replace(" ", "␣") or "(nothing)") + more


def _tap_name(tap: int) -> str:
    return "output" if tap == OUTPUT_TAP else str(tap)


def _of(count: int, total: int) -> str:
    return f"{count:,}" if count == total else f"{count:,} of {total:,}"


def bytes_text(count: int) -> str:
    """A number of bytes in the unit that suits it."""
    if count < 1000:
        return f"{count} bytes"
    size = float(count)
    unit = ""
    units = iter(("kB", "MB", "GB", "TB", "PB"))
    while size >= 1000:
        size /= 1000
        unit = next(units)
    return f"{size:.1f} {unit}"
