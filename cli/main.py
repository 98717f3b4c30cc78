"""``vlsi-cache``: the group of commands. Each is imported only when it is called."""

from __future__ import annotations

import logging
import sys
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version

import click

from vlsi_cache.cli import bash  # noqa: F401 (it registers how bash completes)
from vlsi_cache.cli.encoding import escape_what_is_lacking
from vlsi_cache.cli.streams import ending_with_streams

__all__ = ["COMMANDS", "cli", "main"]

_SIGNALLED = 128
"""Exit codes beyond this are those of signals."""
COMMANDS = {
    "check": "vlsi_cache.cli.check",
    "plan": "vlsi_cache.cli.plan",
    "dump-teacher": "vlsi_cache.cli.dump_teacher",
    "train-student": "vlsi_cache.cli.train_student",
    "evaluate": "vlsi_cache.cli.evaluate",
    "export-exits": "vlsi_cache.cli.export_exits",
    "inspect": "vlsi_cache.cli.inspect",
    "verify": "vlsi_cache.cli.verify",
    "merge": "vlsi_cache.cli.merge",
    "push": "vlsi_cache.cli.push",
    "demo": "vlsi_cache.cli.demo",
}


class _LazyGroup(click.Group):
    """Commands in the order of a run, imported on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        # torchao registers enumerations in a way that torch calls deprecated: nobody can mend it
        logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
        command: click.Command = import_module(COMMANDS[cmd_name]).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        similar = get_close_matches(args[0], COMMANDS, n=1)
        if args[0] not in COMMANDS and similar:
            ctx.fail(f"No such command '{args[0]}'. Did you mean '{similar[0]}'?")
        return super().resolve_command(ctx, args)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("vlsi-cache"), prog_name="vlsi-cache")
def cli() -> None:
    """Distil a large vision-language model into a small one, layer by layer, without ever holding
    both in memory.

    \b
    vlsi-cache check          says what would fail, before hours are spent
    vlsi-cache plan           says what a run will take
    vlsi-cache dump-teacher   reads the teacher once, and writes a cache
    vlsi-cache train-student  trains the student from the cache alone
    vlsi-cache evaluate       measures a model on held-out conversations
    vlsi-cache export-exits   copies what reads a student's layers
    vlsi-cache inspect        says what a cache holds
    vlsi-cache verify         validates every file of a cache
    vlsi-cache merge          makes one cache of several
    vlsi-cache push           shares a student or a cache on the Hugging Face hub
    """  # noqa: D301 (click reads the backspace as: keep these lines)


def main() -> None:
    """Entry point of the console script."""
    escape_what_is_lacking()
    try:
        with ending_with_streams():
            cli()
    except SystemExit as end:
        if isinstance(end.code, int) and end.code > _SIGNALLED:
            # A signal to the whole job ends the workers too. What reads their batches would say so
            # with a traceback when it is collected, below the line that says how to go on.
            sys.unraisablehook = lambda _: None
        raise
