"""``vlsi-cache merge``."""

from __future__ import annotations

import click

from vlsi_cache.cli.completion import complete_folders
from vlsi_cache.cli.options import errors_in_one_line

__all__ = ["command"]


@click.command("merge")
@errors_in_one_line
@click.argument("out", metavar="OUT", shell_complete=complete_folders)
@click.argument(
    "caches", metavar="CACHE...", nargs=-1, required=True, shell_complete=complete_folders
)
def command(out: str, caches: tuple[str, ...]) -> None:
    """Make one cache of several, over the samples of all.

    OUT and each CACHE are folders or URLs. The caches must be complete, with the same teacher and
    settings, and over disjoint samples. OUT holds their samples in the order given. On one file
    system the shards are linked and take no more room. A second run goes on where the first
    stopped.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    from vlsi_cache.store import merge_caches

    columns = (TextColumn("merge"), BarColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("merge", total=None)
        merge_caches(out, caches, lambda done, total: bar.update(task, completed=done, total=total))
    click.echo(f"cache: {out}\nlook inside with: vlsi-cache inspect {out}")
