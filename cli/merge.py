"""``vlsi-cache merge``."""

from __future__ import annotations

import shlex

import click

from vlsi_cache.cli.completion import complete_folders
from vlsi_cache.cli.early import validate_cache_there
from vlsi_cache.cli.options import errors_in_one_line
from vlsi_cache.cli.terminal import counting, log_to
from vlsi_cache.errors import counted
from vlsi_cache.recipe import at_home

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
    log_to("stderr")
    out, caches = at_home(out), tuple(map(at_home, caches))
    for cache in caches:
        validate_cache_there(cache)
    from vlsi_cache.store import merge_caches

    with counting(f"merging {counted(len(caches), 'cache')}", "steps") as report:
        merge_caches(out, caches, report)
    click.echo(f"cache: {out}\nlook inside with: {shlex.join(['vlsi-cache', 'inspect', out])}")
    student = ["--student", "MODEL", "--data", "DATA-OF-ALL", "--cache", out]
    click.echo(f"next: {shlex.join(['vlsi-cache', 'train-student', *student])}")
