"""The command line of a benchmark: which size it measures, on which device, and how it prints."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import click
import torch
from rich.console import Console

from harness.measurement import device_of, machine
from harness.tables import PrintedTable

__all__ = ["benchmark"]

WIDTH = 100
"""Columns of the widest table. No figure is cut short on a narrow terminal, or in a file."""


def benchmark(
    measure: Callable[..., dict[str, Any]],
    tables: Callable[[dict[str, Any]], Sequence[PrintedTable]],
    *,
    full: Any,
    quick: Any,
    rounds: int | None = 5,
    on_cpu: bool = False,
) -> click.Command:
    """Build the command of one script.

    Args:
        measure: Measurement of one size, given first. It takes `device` unless the benchmark is
            `on_cpu`, `rounds` unless they are None, and the options that it is decorated with.
        tables: The tables that show its result.
        full: Size of a measurement.
        quick: Size of a smoke run.
        rounds: Default number of timed rounds, or None where nothing is repeated.
        on_cpu: Whether only the CPU is measured. Then `--device` changes nothing.
    """

    @functools.wraps(measure)
    def command(*, as_json: bool, markdown: bool, small: bool, device: str, **given: Any) -> None:
        chosen = torch.device("cpu") if on_cpu else device_of(device)
        if not on_cpu:
            given["device"] = chosen
        measured = measure(quick if small else full, **given)
        result = {**measured, "rounds": given.get("rounds", 1), **machine(chosen)}
        if as_json:
            click.echo(json.dumps(result, indent=2))
        elif markdown:
            for table in tables(result):
                click.echo(f"{table.title}\n\n{table.markdown()}\n")
        else:
            _print(result, tables(result))

    for option in (*_rounds_option(rounds), *_COMMON_OPTIONS):
        command = option(command)
    lines = str(measure.__globals__["__doc__"]).splitlines()
    return click.command(help=lines[0])(command)


_COMMON_OPTIONS = (
    click.option("--device", default="auto", show_default=True, help="A CPU benchmark ignores it."),
    click.option("--quick", "small", is_flag=True, help="Tiny sizes: a smoke, not a measurement."),
    click.option("--markdown", is_flag=True, help="Print the tables as Markdown."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object, not tables."),
)


def _rounds_option(rounds: int | None) -> tuple[Callable[..., Any], ...]:
    if rounds is None:
        return ()
    return (click.option("--rounds", default=rounds, show_default=True, help="Timed rounds."),)


def _print(result: dict[str, Any], tables: Sequence[PrintedTable]) -> None:
    """Print for a terminal, with what the figures depend on."""
    console = Console()
    console.width = max(console.width, WIDTH)
    for table in tables:
        console.print(table.for_terminal())
    console.print(
        f"{result['device']}, {result['threads']} threads, torch {result['torch']}, "
        f"{result['rounds']} rounds"
    )
