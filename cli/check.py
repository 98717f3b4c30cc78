"""``vlsi-cache check``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import click

from vlsi_cache.cli.options import errors_in_one_line, recipe_flags
from vlsi_cache.cli.terminal import log_to

if TYPE_CHECKING:
    from vlsi_cache.recipe import Recipe

__all__ = ["command", "progress_of"]

logger = logging.getLogger("vlsi_cache.cli.check")

_LINES_IN_A_LOG = 10


@click.command("check")
@errors_in_one_line
@recipe_flags(
    {
        "teacher": "teacher.model",
        "student": "student.model",
        "data": "data.path",
        "split": "data.split",
        "limit": "data.limit",
        "max_length": "data.max_length",
        "on_error": "data.on_error",
    }
)
@click.option("--teacher", metavar="MODEL", help="from_pretrained name or folder of the teacher.")
@click.option("--student", metavar="MODEL", help="from_pretrained name or folder of the student.")
@click.option("--data", metavar="PATH", help="JSON(L) file, datasets folder or hub name.")
@click.option("--split", help="Split of a datasets source.  [default: train]")
@click.option("--limit", type=int, help="Number of first samples to read.")
@click.option("--max-length", type=int, help="Most tokens of one conversation.")
@click.option("--on-error", help="stop, or skip: samples that fail are left out of a run.")
@click.option("--images", is_flag=True, help="Decode pictures. Otherwise only sizes are read.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(recipe: Recipe, images: bool, as_json: bool) -> None:
    """Say what would fail, and what is learned, before hours are spent.

    Reads every row, renders and tokenizes it for the teacher, the student or both, and goes on past
    rows that fail. No weights are loaded. Exits with 1 if anything would fail.
    """
    from vlsi_cache.check import check_data, check_table

    log_to("stderr")
    with progress_of("check", "checked") as show:
        report = check_data(recipe, decode_images=images, on_progress=show)
    if as_json:
        click.echo(report.model_dump_json(indent=2))
    else:
        from rich.console import Console

        Console(soft_wrap=True).print(check_table(report))
    if report.would_end_a_run:
        raise SystemExit(1)


@contextmanager
def progress_of(command: str, verb: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of rows on a terminal, and a few lines in a log.

    Args:
        command: name of the command that reads them.
        verb: what it has done with them.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield partial(_log_line, verb)
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(command),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows"),
        TimeRemainingColumn(),
        TextColumn("remaining"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(command, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _log_line(verb: str, done: int, total: int) -> None:
    if done * _LINES_IN_A_LOG // total > (done - 1) * _LINES_IN_A_LOG // total:
        logger.info("%s %d of %d rows", verb, done, total)
