"""``vlsi-cache plan``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from vlsi_cache.cli.check import progress_of, with_taps
from vlsi_cache.cli.next_step import next_command
from vlsi_cache.cli.options import RecipeCommand, errors_in_one_line, recipe_flags, taps_list
from vlsi_cache.cli.terminal import importing, log_to
from vlsi_cache.recipe import named_models, validate_named

if TYPE_CHECKING:
    from vlsi_cache.plan import Plan
    from vlsi_cache.recipe import Recipe

__all__ = ["command"]

_LEAST_BYTES = 10**6
"""A bare number below it is not meant as bytes."""
_UNITS = {"": 0, "K": 3, "M": 6, "G": 9, "T": 12}


class _Size(NamedTuple):
    """A size as it was typed, and its bytes."""

    text: str
    num_bytes: int


def _size(_context: click.Context, _parameter: click.Parameter, value: str | None) -> _Size | None:
    """Read ``80GB`` or ``80GiB`` as bytes."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", value.strip().upper())
    if found is None or not float(found[1]):
        raise click.BadParameter(f"expected a size such as 80GB or 80GiB, found {value!r}")
    if value.strip().isdecimal() and int(value) < _LEAST_BYTES:
        raise click.BadParameter(f"{value} would be bytes: write {value}GB or {value}GiB")
    power = _UNITS[found[2]]
    unit = 2.0 ** (power // 3 * 10) if found[3] else 10.0**power
    return _Size(value.strip(), round(float(found[1]) * unit))


@click.command("plan", cls=RecipeCommand)
@errors_in_one_line
@recipe_flags(
    {
        "teacher": "teacher.model",
        "student": "student.model",
        "data": "data.path",
        "split": "data.split",
        "limit": "data.limit",
        "max_length": "data.max_length",
        "batch_tokens": "cache.batch_tokens",
        "output": "output",
        "cache": "cache.path",
        "device": "device",
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
@click.option(
    "--batch-tokens", type=int, help="Most tokens per forward pass of the teacher's recording."
)
@click.option("-o", "--output", metavar="DIR", help="Run folder.  [default: runs/vlsi]")
@click.option("--cache", metavar="DIR", help="Cache folder or URL.  [default: OUTPUT/cache]")
@click.option("--device", help="auto, cpu, cuda, …  [default: auto, planned as cuda]")
@click.option(
    "--devices",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Devices of the run, each with a process of its own.",
)
@click.option(
    "--fsdp/--no-fsdp",
    default=False,
    show_default=True,
    help="Whether the devices share the student's weights.",
)
@click.option(
    "--memory",
    callback=_size,
    metavar="SIZE",
    help="Memory of each device, such as 80GB.  [default: that of the device here]",
)
@click.option(
    "--throughput",
    type=click.FloatRange(min=0, min_open=True),
    metavar="TFLOPS",
    help="Arithmetic that each device does in a second, for the times.",
)
@click.option("--probe", is_flag=True, help="Measure the throughput here, on two blocks.")
@click.option(
    "--rows",
    type=click.IntRange(1),
    default=2000,
    show_default=True,
    help="Most rows to read, evenly spread over the data.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(recipe: Recipe, rows: int, as_json: bool, **given: Any) -> None:
    """Say what a run will take, before hours are spent.

    Counts samples, tokens and the cache's bytes, and rehearses every stage without its weights: the
    memory of each device, what does not fit, and which setting mends it. Exits with 1 if a stage
    does not fit.
    """
    throughput: float | None = given["throughput"]
    if given["probe"] and throughput is not None:
        raise click.UsageError("--probe contradicts --throughput: give one of the two")
    if given["fsdp"] and given["devices"] == 1:
        raise click.UsageError("--fsdp shares weights among devices: give --devices, at least 2")
    log_to("stderr")
    validate_named(recipe, list(named_models(recipe)))
    if (taps := given["taps"]) is not None:
        recipe = with_taps(recipe, taps)
    with importing():
        from vlsi_cache.plan import Machines, plan_run, plan_table

    rate = None if throughput is None else throughput * 1e12
    size = None if given["memory"] is None else given["memory"].num_bytes
    machines = Machines(given["devices"], size, rate, given["probe"], given["fsdp"])
    with progress_of("plan", "read") as show:
        plan = plan_run(recipe, machines, most_rows=rows, on_progress=show)
    if as_json:
        click.echo(plan.model_dump_json(indent=2))
    else:
        from rich.console import Console

        console = Console()
        console.print(plan_table(plan))
        typed = {} if taps is None else {"--taps": ",".join(map(str, taps))}
        click.echo(f"\nnext: {_next(plan, recipe, typed, _machine_flags(given))}")
    if plan.fits is False:
        raise SystemExit(1)


def _machine_flags(given: Mapping[str, Any]) -> dict[str, str]:
    """Return the flags that say what the run gets, as they were typed."""
    found = {"--devices": str(given["devices"])} if given["devices"] > 1 else {}
    if given["memory"] is not None:
        found["--memory"] = given["memory"].text
    return found


def _next(
    plan: Plan, recipe: Recipe, typed: Mapping[str, str], machine_flags: Mapping[str, str]
) -> str:
    """Return the command that comes next: the first whose stages are not done, or a look at all.

    Args:
        plan: what is to be done.
        recipe: the recipe of it.
        typed: ``--taps``, if it was given. They belong to the first model that is named.
        machine_flags: what the run gets, for another plan.
    """
    role = next(iter(named_models(recipe)))
    remaining = [stage.name for stage in plan.stages if not stage.done]
    if any(stage.fits is False and not stage.done for stage in plan.stages):
        again = next_command("plan", {**typed, **machine_flags})
        return f"{again} --fsdp" if plan.shards_student else again
    if not remaining:
        return shlex.join(["vlsi-cache", "inspect", str(recipe.output)])
    name = "dump-teacher" if remaining[0].startswith("teacher") else "train-student"
    command = next_command(name, typed if name.endswith(role) else {})
    launcher = _launcher(plan, recipe, name)
    return command if launcher is None else launcher + command.removeprefix("vlsi-cache")


def _launcher(plan: Plan, recipe: Recipe, name: str) -> str | None:
    """Return what starts the planned processes of a command. None for one that starts itself."""
    module = "-m vlsi_cache.cli"
    on_cpu = "ACCELERATE_USE_CPU=true " if plan.device == "cpu" else ""
    if name == "dump-teacher" and recipe.teacher.device_map is not None:
        return None
    if name == "dump-teacher" and recipe.teacher.tensor_parallel > 1:
        return f"{on_cpu}torchrun --nproc-per-node {recipe.teacher.tensor_parallel} {module}"
    if plan.devices == 1:
        return None
    shards = plan.shards_student and name == "train-student"
    if on_cpu:  # where accelerate launch starts a single process
        asked = "ACCELERATE_USE_FSDP=true FSDP_VERSION=2 " if shards else ""
        return f"{on_cpu}{asked}torchrun --nproc-per-node {plan.devices} {module}"
    asked = "--use_fsdp --fsdp_version 2 " if shards else ""
    return f"accelerate launch {asked}--num_processes {plan.devices} {module}"
