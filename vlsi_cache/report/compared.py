"""Two caches side by side in the terminal, and the differences of any two."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vlsi_cache.errors import printable
from vlsi_cache.report.comparison import CacheComparison, SettingDifference, value_text
from vlsi_cache.report.words import setting_rows, tap_name
from vlsi_cache.store.cache.figures.summary import TapErrors, TapSummary

__all__ = ["both_rows", "caches_table", "differences_table", "name_grid", "plain_table"]

_MOST_DIFFERENCES: Final = 40


def caches_table(compared: CacheComparison) -> RenderableType:
    """What both caches hold, what differs, and the means of the taps that both have."""
    parts: list[RenderableType] = [
        name_grid([("", "first", "second"), *both_rows(compared)]),
        Text(),
        differences_table(compared.differences),
    ]
    second = {tap.tap: tap for tap in compared.second.taps}
    pairs = [(tap, second[tap.tap]) for tap in compared.first.taps if tap.tap in second]
    if pairs:
        parts += [Text(), _taps(pairs)]
    return Group(*parts)


def both_rows(compared: CacheComparison) -> list[tuple[str, str, str]]:
    """Return name and both values of each setting and size, printable."""
    first, second = (dict(setting_rows(cache)) for cache in (compared.first, compared.second))
    names = dict.fromkeys([*first, *second])
    return [(name, first.get(name, "–"), second.get(name, "–")) for name in names]


def _taps(pairs: Sequence[tuple[TapSummary, TapSummary]]) -> Table:
    table = plain_table("Means of the taps that both have, first | second")
    for heading in ("tap", "entropy (nats)", "label log-p (nats)", "top token is the output's"):
        table.add_column(heading, justify="right")
    for first, second in pairs:
        table.add_row(tap_name(first.tap), *_both(_means(first), _means(second)))
        errors = [_means(tap.standard_errors) for tap in (first, second)]
        if any(errors):
            table.add_row("", *(f"± {both}" for both in _both(*errors)), style="dim")
    if any(tap.standard_errors for pair in pairs for tap in pair):
        table.caption, table.caption_justify = (
            "±: standard errors. A cache read whole has none.",
            "left",
        )
    return table


def _means(tap: TapSummary | TapErrors | None) -> list[str]:
    """Return the figures of a tap that the table has, or their errors, as text."""
    if tap is None:
        return []
    return [
        f"{tap.entropy_nats:.3f}",
        f"{tap.label_log_prob_nats:.3f}",
        f"{tap.agreement_with_final:.1%}",
    ]


def _both(first: Sequence[str], second: Sequence[str]) -> list[str]:
    return [f"{one} | {other}" for one, other in zip_longest(first, second, fillvalue="–")]


def differences_table(differences: tuple[SettingDifference, ...]) -> RenderableType:
    """The settings in which two differ."""
    if not differences:
        return Text("The settings are the same.")
    # no table: paths and values may both be too long for columns
    lines = [Text("What differs in the settings, first | second", style="bold")]
    for item in differences[:_MOST_DIFFERENCES]:
        values = f"{value_text(item, first=True)} | {value_text(item, first=False)}"
        lines.append(Text(f"{printable(item.path)}: {values}"))
    if len(differences) > _MOST_DIFFERENCES:
        more = len(differences) - _MOST_DIFFERENCES
        lines.append(Text(f"and {more:,} more, which --json lists"))
    return Group(*lines)


def plain_table(title: str | None = None) -> Table:
    """Return an empty table without lines."""
    return Table(
        title=None if title is None else Text(title, style="bold"),
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )


def name_grid(rows: Sequence[tuple[str, ...]]) -> Table:
    """Return names, each with its values."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    for _ in range(max((len(row) for row in rows), default=2) - 1):
        table.add_column(overflow="fold")
    for name, *values in rows:
        table.add_row(name, *map(Text, values))
    return table
