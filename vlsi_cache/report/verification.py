"""What verifying a cache found, as a terminal table."""

from __future__ import annotations

from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vlsi_cache.errors import counted, printable
from vlsi_cache.report.words import bytes_text
from vlsi_cache.store import Verification

__all__ = ["verification_table"]

_MOST_ROWS: Final = 100
"""A table of a hundred thousand rows takes minutes, and nobody reads it."""


def verification_table(found: Verification) -> RenderableType:
    """A line of counts, then a row for each of the first damages."""
    files = f"{found.num_files:,} files, {bytes_text(found.num_bytes)} on disk"
    if not found.num_shards and not found.sound:
        state = "without its manifest, nothing is known of the shards"
    elif found.complete:
        state = f"complete, {counted(found.num_shards, 'shard')}"
    else:
        state = f"incomplete, {found.num_shards_sealed:,} of {found.num_shards:,} shards sealed"
    summary = Text(f"{printable(found.path)}: {files}; {state}; ")
    num_damaged = len({damage.files for damage in found.damages})  # one may have two problems
    summary.append(
        "sound" if found.sound else f"{num_damaged:,} damaged",
        style="green" if found.sound else "bold red",
    )
    if found.sound:
        return summary
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("file", "fault", "what to do"):
        table.add_column(heading, overflow="fold")
    for damage in found.damages[:_MOST_ROWS]:
        names = Text("\n".join(map(printable, damage.files)))
        table.add_row(names, Text(printable(damage.fault)), Text(printable(damage.mend)))
    more = len(found.damages) - _MOST_ROWS
    rest = [Text(f"… and {more:,} more. --json names all of them")] if more > 0 else []
    return Group(summary, Text(), table, *rest)
