"""Tables of results, for a terminal or as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

__all__ = ["PrintedTable", "contenders", "figures"]


@dataclass(frozen=True)
class PrintedTable:
    """One table: its first columns are names, the others figures."""

    title: str
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]
    named: int = 1
    """Number of columns that are names."""

    def for_terminal(self) -> Table:
        """Build the table for a terminal, with each unit on a line of its own."""
        table = Table(title=self.title)
        for column, heading in enumerate(self.headings):
            side: Any = "left" if column < self.named else "right"
            table.add_column(heading.replace(" (", "\n("), justify=side, no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """Write the table for a page, without its title."""
        sides = ("---",) * self.named + ("---:",) * (len(self.headings) - self.named)
        lines = [self.headings, sides, *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figures(title: str, result: dict[str, Any], names: Sequence[str]) -> PrintedTable:
    """Build a table of single figures of a result, one to a row."""
    return PrintedTable(title, ("figure", "value"), [(n, f"{result[n]:.3g}") for n in names])


def contenders(
    title: str, seconds: Mapping[str, float], peaks: Mapping[str, int], *, base: str
) -> PrintedTable:
    """Build the table of times and peaks, each also over those of one contender.

    Args:
        title: Title of the table.
        seconds: Time of each contender.
        peaks: Most memory of each contender, in bytes.
        base: Contender that all are compared with.
    """
    over = f"(over {base})"
    return PrintedTable(
        title,
        ("contender", "time (s)", f"time {over}", "peak (MiB)", f"peak {over}"),
        [
            (
                name,
                f"{seconds[name]:.3f}",
                f"{seconds[name] / seconds[base]:.2f}",
                f"{peaks[name] / 2**20:.0f}",
                f"{peaks[name] / peaks[base]:.2f}",
            )
            for name in seconds
        ],
    )
