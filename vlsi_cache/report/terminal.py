"""Summaries as terminal tables that read well at 80 columns."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vlsi_cache.errors import printable
from vlsi_cache.report.sample import Picture, SampleView, TapGuess, TurnView
from vlsi_cache.report.words import (
    MOST_OF_NAME,
    lacking_text,
    setting_rows,
    tap_name,
    visible_text,
    visible_token,
    without_figures,
)
from vlsi_cache.store.cache.figures.summary import CacheSummary, TapErrors

__all__ = ["sample_table", "summary_table"]

_FEW_TAPS = 5
_MOST_OF_TURN = 2000
"""Most characters of a text of a conversation that are shown."""
_SHADES = ("", "white on #3f6f9f", "white on #2d5f93", "white on #1b4f87", "white on #093f7b")
"""Styles of a token by its probability, in steps of a fifth."""
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
    lacking = lacking_text(summary)
    first = [Text(lacking, style="bold yellow"), Text()] if lacking else []
    return Group(*first, _settings(summary), Text(), _taps(summary))


def sample_table(view: SampleView) -> RenderableType:
    """A row per response token, with the most likely token of each tap.

    Few taps get a column each. Many would not fit (a 72B teacher has 21), so a run of taps that
    agree is written once. A sample that failed has only its reason. The turns of the conversation
    come first, if the data was read.
    """
    if view.failure is not None:
        name, failure = printable(view.sample_id, MOST_OF_NAME), printable(view.failure)
        return Text(f"sample {name} could not be read by the teacher: {failure}")
    few = len(view.taps) <= _FEW_TAPS
    table = Table(
        title=Text(f"sample {printable(view.sample_id, MOST_OF_NAME)}"),
        title_justify="left",
        caption=_FEW_CAPTION if few else _MANY_CAPTION,
        caption_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    table.add_column("response", overflow="fold", max_width=20)
    for heading in [*map(tap_name, view.taps)] if few else ["taps"]:
        table.add_column(heading, overflow="fold")
    for token in view.tokens:
        runs = _runs(token.guesses, joined=not few)
        cells = [_guess(run, token.token_id, named=not few) for run in runs]
        columns = cells if few else [Columns(cells, padding=(0, 2))]
        table.add_row(Text(visible_token(token.text)), *columns)
    return table if view.conversation is None else Group(*map(_turn, view.conversation), table)


def _turn(turn: TurnView) -> Text:
    text = Text()
    text.append(f"{printable(turn.role, MOST_OF_NAME)}: ", style="dim")
    for part in turn.parts:
        if isinstance(part, Picture):
            text.append(f"[image of {part.width} × {part.height} pixels] ", style="dim")
        else:
            text.append(visible_text(part[:_MOST_OF_TURN]))
            text.append(" …" if len(part) > _MOST_OF_TURN else "")
    return text


def _settings(summary: CacheSummary) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in setting_rows(summary):
        table.add_row(name, Text(value))
    return table


def _taps(summary: CacheSummary) -> RenderableType:
    if not summary.taps:
        return Text(without_figures(summary))
    drawn = summary.sampling.k == 0
    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        caption=_taps_caption(summary, drawn=drawn),
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
            tap_name(tap.tap),
            f"{tap.entropy_nats:.3f}",
            *mass,
            f"{tap.label_log_prob_nats:.3f}",
            f"{tap.agreement_with_final:.1%}",
            f"{tap.agreement_with_label:.1%}",
            f"{tap.label_in_record:.1%}",
        )
        if tap.standard_errors is not None:
            table.add_row(*_errors(tap.standard_errors), style="dim")
    return table


def _taps_caption(summary: CacheSummary, *, drawn: bool) -> str:
    return (
        "Means over response tokens. Top token: share of tokens at which the tap's most "
        "likely token is the output's, or the label. "
        + (
            "It is the token drawn most often. "
            if drawn
            else "Mass: probability of the most likely tokens kept. "
        )
        + "Label kept: share of tokens whose label is among the entries."
        + (" ±: standard error." if summary.num_samples_read is not None else "")
    )


def _errors(errors: TapErrors) -> tuple[str, ...]:
    mass = () if errors.captured_mass is None else (f"± {errors.captured_mass:.1%}",)
    return (
        "",
        f"± {errors.entropy_nats:.3f}",
        *mass,
        f"± {errors.label_log_prob_nats:.3f}",
        f"± {errors.agreement_with_final:.1%}",
        f"± {errors.agreement_with_label:.1%}",
        f"± {errors.label_in_record:.1%}",
    )


def _runs(guesses: Sequence[TapGuess], *, joined: bool) -> list[list[TapGuess]]:
    if not joined:
        return [[guess] for guess in guesses]
    return [list(run) for _, run in itertools.groupby(guesses, key=lambda guess: guess.token_id)]


def _guess(run: Sequence[TapGuess], label: int, *, named: bool) -> Text:
    first = run[0]
    last = run[-1]
    text = Text()
    if named:
        names = dict.fromkeys([tap_name(first.tap), tap_name(last.tap)])
        text.append("–".join(names) + " ", style="dim")
    emphasis = "bold " if last.token_id == label else ""
    text.append(visible_token(last.text), style=emphasis + _shade(last.probability))
    text.append(f" {last.probability:.2f}", style="dim")
    return text


def _shade(probability: float) -> str:
    """Return a style that is darker blue for a greater probability, and nothing for the least."""
    step = int(min(probability, 1.0) * len(_SHADES))
    return _SHADES[min(step, len(_SHADES) - 1)]
