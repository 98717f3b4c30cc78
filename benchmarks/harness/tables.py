"""Tables of results, for a terminal or as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

__all__ = ["PrintedTable", "figures"]


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
