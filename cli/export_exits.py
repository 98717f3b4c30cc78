"""``vlsi-cache export-exits``."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from vlsi_cache.cli.completion import complete_folders
from vlsi_cache.cli.early import validate_folder_there, validate_writable
from vlsi_cache.cli.options import errors_in_one_line
from vlsi_cache.cli.paths import HOME_PATH
from vlsi_cache.cli.terminal import importing, log_to

__all__ = ["command"]


@click.command("export-exits")
@errors_in_one_line
@click.argument("run", type=HOME_PATH, shell_complete=complete_folders)
@click.argument("out", type=HOME_PATH, shell_complete=complete_folders)
@click.option("--replace", is_flag=True, help="Replace the exits that OUT holds.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(run: Path, out: Path, replace: bool, as_json: bool) -> None:
    """Copy the exits of a run's latest student to the folder OUT.

    Exits are the verbalizers that read a student's taps as words. RUN is the folder of a run, of a
    student or of verbalizers.
    """
    log_to("stderr")
    validate_folder_there(run, "Name the folder of a run")
    validate_writable(out, "OUT")
    with importing():
        from vlsi_cache.verbalizer import export_exits

    found = export_exits(run, out, replace=replace)
    if as_json:
        click.echo(found.model_dump_json(indent=2))
        return
    click.echo(f"exits at taps {', '.join(map(str, found.taps))} of {found.backbone}: {out}")
    if found.stale:
        click.echo("they are older than the student: docs/exits.md says how to renew them")
    words = ["vlsi-cache", "evaluate", str(found.backbone), "--verbalizers", str(out)]
    click.echo(f"next: {shlex.join(words)} --data HELD-OUT")
