"""``vlsi-cache demo``."""

from __future__ import annotations

from pathlib import Path

import click

from vlsi_cache.cli.options import errors_in_one_line
from vlsi_cache.cli.signals import stopping_on_signals
from vlsi_cache.cli.terminal import import_libraries, log_to

__all__ = ["command"]


@click.command("demo")
@errors_in_one_line
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("vlsi-cache-demo"),
    show_default=True,
    help="Folder of everything. A second run continues where the first stopped.",
)
@click.option("--quick", is_flag=True, help="A smoke run with tiny sizes, under two minutes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def command(out: Path, quick: bool, as_json: bool) -> None:
    """Distil a small Qwen2-VL on easy-VQA, from scratch, on a CPU.

    Trains a teacher, then runs dump-teacher, train-student and inspect. Scores the teacher, the
    student after fine-tuning only and the distilled student on held-out images.
    """
    log_to("stderr")
    with stopping_on_signals():
        import_libraries()
        from vlsi_cache.demo.plan import FULL, QUICK, Demo
        from vlsi_cache.demo.run import run_demo

        summary = run_demo(Demo(out.absolute(), QUICK if quick else FULL))
    if as_json:
        click.echo(summary.model_dump_json(indent=2))
        return
    from rich.console import Console

    from vlsi_cache.demo.table import demo_table

    Console().print(demo_table(summary))
