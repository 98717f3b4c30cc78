"""``vlsi-cache check``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import click

from vlsi_cache.cli.next_step import next_command
from vlsi_cache.cli.options import RecipeCommand, errors_in_one_line, recipe_flags, taps_list
from vlsi_cache.cli.terminal import importing, log_to, quieten_libraries
from vlsi_cache.errors import counted
from vlsi_cache.recipe import RecipeProblemsError, named_models, validate_named

if TYPE_CHECKING:
    from vlsi_cache.recipe import Recipe

__all__ = ["command", "progress_of", "with_taps"]

logger = logging.getLogger("vlsi_cache.cli.check")

_LINES_IN_A_LOG = 10
_FEW_ROWS = 20
"""So many are read at once, and a line at the end is enough."""


@click.command("check", cls=RecipeCommand, short_help="Say what would fail, and what is learned.")
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
    },
    is_argument=True,
)
@click.option("--teacher", metavar="MODEL", help="from_pretrained name or folder of the teacher.")
@click.option("--student", metavar="MODEL", help="from_pretrained name or folder of the student.")
@click.option("--data", metavar="PATH", help="JSON(L) file, datasets folder or hub name.")
@click.option("--split", help="Split of a datasets source.  [default: train]")
@click.option("--limit", type=int, help="Number of first samples to read.")
@click.option("--max-length", type=int, help="Most tokens of one conversation.")
@click.option(
    "--taps",
    callback=taps_list,
    metavar="I,J,…",
    help="Decoder blocks to read, of the teacher or else of the student.",
)
@click.option("--on-error", help="stop, or skip: samples that fail are left out of a run.")
@click.option("--images", is_flag=True, help="Decode pictures. Otherwise only sizes are read.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(recipe: Recipe, taps: list[int] | None, images: bool, as_json: bool) -> None:
    """Say what would fail, and what is learned, before hours are spent.

    Reads every row, renders and tokenizes it for the teacher, the student or both, and goes on past
    rows that fail. No weights are loaded. Exits with 1 if anything would fail.
    """
    log_to("stderr")
    validate_named(recipe, list(named_models(recipe)))
    if taps is not None:
        recipe = with_taps(recipe, taps)
    with importing():
        from vlsi_cache.check import check_data, check_table

    quieten_libraries()
    with progress_of("check", "checked") as show:
        report = check_data(recipe, decode_images=images, on_progress=show)
    if as_json:
        click.echo(report.model_dump_json(indent=2))
    else:
        from rich.console import Console

        Console(soft_wrap=True).print(check_table(report))
        if not report.would_end_a_run:
            typed = {} if taps is None else {"--taps": ",".join(map(str, taps))}
            click.echo(f"\nnext: {next_command('plan', typed)}")
    if report.would_end_a_run:
        raise SystemExit(1)


def with_taps(recipe: Recipe, taps: list[int]) -> Recipe:
    """Return the recipe with the taps of the teacher, or of the student if it names no teacher."""
    role = next(iter(named_models(recipe)))
    section = (recipe.teacher if role == "teacher" else recipe.student).model_copy(
        update={"taps": taps}
    )
    problems = section.contradictions(role)
    if problems:
        raise RecipeProblemsError(dict(problems), "flags", {f"{role}.taps": "--taps"})
    return recipe.model_copy(update={role: section})


@contextmanager
def progress_of(command: str, verb: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of rows on a terminal, and a few lines in a log.

    Args:
        command: name of the command that reads them.
        verb: what it has done with them.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
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
    lines = _LINES_IN_A_LOG if total > _FEW_ROWS else 1
    if done * lines // total > (done - 1) * lines // total:
        logger.info("%s %s of %s", verb, f"{done:,}", counted(total, "row"))
