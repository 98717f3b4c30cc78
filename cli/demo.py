"""``vlsi-cache demo``."""

from __future__ import annotations

from pathlib import Path

import click

from vlsi_cache.cli.completion import complete_folders
from vlsi_cache.cli.early import validate_writable
from vlsi_cache.cli.options import errors_in_one_line
from vlsi_cache.cli.paths import HOME_PATH
from vlsi_cache.cli.signals import stopping_on_signals
from vlsi_cache.cli.terminal import import_libraries, log_to

__all__ = ["command"]


@click.command("demo", short_help="Distil a small Qwen2-VL on a CPU, from scratch.")
@errors_in_one_line
@click.option(
    "--out",
    type=HOME_PATH,
    shell_complete=complete_folders,
    default=Path("vlsi-cache-demo"),
    show_default=True,
    help="Folder of everything. A second run continues where the first stopped.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of everything."
)
@click.option(
    "--pairs",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Pairs of students, each of its own seed, that learn from the one cache.",
)
@click.option("--quick", is_flag=True, help="A smoke run with tiny sizes, under two minutes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def command(out: Path, seed: int, pairs: int, quick: bool, as_json: bool) -> None:
    """Distil a small Qwen2-VL on easy-VQA, from scratch, on a CPU.

    The teacher has seen right answers. For the student there are only answers given in a hurry, two
    in five of them wrong. Runs dump-teacher, inspect, train-student and evaluate. One student is
    distilled from the cache, and another is only fine-tuned on the same answers.
    """
    log_to("stderr")
    validate_writable(out, "--out")
    with stopping_on_signals():
        import_libraries()
        from vlsi_cache.demo.plan import FULL, QUICK, Demo
        from vlsi_cache.demo.run import run_demo

        demo = Demo(out.absolute(), QUICK if quick else FULL, seed)
        summary = run_demo(demo, num_pairs=pairs)
    if as_json:
        click.echo(summary.model_dump_json(indent=2))
        return
    from rich.console import Console

    from vlsi_cache.demo.table import demo_table

    Console().print(demo_table(summary))
