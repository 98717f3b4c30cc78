"""``vlsi-cache dump-teacher``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vlsi_cache.cli.early import validate_verbalizers_there
from vlsi_cache.cli.next_step import next_command
from vlsi_cache.cli.options import (
    RecipeCommand,
    device_map,
    errors_in_one_line,
    memory_by_device,
    recipe_flags,
    taps_list,
)
from vlsi_cache.cli.signals import stopping_on_signals
from vlsi_cache.cli.terminal import import_libraries, log_to
from vlsi_cache.recipe import validate_named, validate_trackers
from vlsi_cache.recipe.outputs import validate_outputs
from vlsi_cache.recipe.partition import Partition

if TYPE_CHECKING:
    from vlsi_cache.recipe import Recipe

__all__ = ["command"]


@click.command("dump-teacher", cls=RecipeCommand)
@errors_in_one_line
@recipe_flags(
    {
        "teacher": "teacher.model",
        "data": "data.path",
        "split": "data.split",
        "limit": "data.limit",
        "output": "output",
        "cache": "cache.path",
        "taps": "teacher.taps",
        "verbalizers": "teacher.verbalizers",
        "steps": "teacher.verbalization.steps",
        "k": "cache.k",
        "m": "cache.m",
        "drawn_from": "cache.drawn_from",
        "dtype": "teacher.dtype",
        "device_map": "teacher.device_map",
        "max_memory": "teacher.max_memory",
        "tensor_parallel": "teacher.tensor_parallel",
        "batch_size": "cache.batch_size",
        "batch_tokens": "cache.batch_tokens",
        "samples_per_shard": "cache.samples_per_shard",
        "on_error": "cache.on_error",
        "device": "device",
        "seed": "seed",
    },
    is_argument=True,
)
@click.option("--teacher", metavar="MODEL", help="from_pretrained name or folder of the teacher.")
@click.option("--data", metavar="PATH", help="JSON(L) file, datasets folder or hub name.")
@click.option("--split", help="Split of a datasets source.  [default: train]")
@click.option("--limit", type=int, help="Number of first samples to read.")
@click.option("-o", "--output", metavar="DIR", help="Run folder.  [default: runs/vlsi]")
@click.option("--cache", metavar="DIR", help="Cache folder or URL.  [default: OUTPUT/cache]")
@click.option(
    "--taps",
    callback=taps_list,
    metavar="I,J,…",
    help="Decoder blocks to read, from 0.  [default: every 4th from 2]",
)
@click.option(
    "--verbalizers", metavar="DIR", help="Trained verbalizers. Otherwise they are trained."
)
@click.option("--steps", type=int, help="Steps of verbalizer training.  [default: one epoch]")
@click.option(
    "-k",
    "--k",
    type=int,
    help="Most likely tokens kept.  [default: 4, or 0 if -m is given without --drawn-from whole]",
)
@click.option(
    "-m",
    "--m",
    type=int,
    help="Tokens drawn.  [default: 12, or 14 if -k is given without --drawn-from whole]",
)
@click.option(
    "--drawn-from",
    help="What they are drawn from: the whole distribution, or the rest beyond the k.  "
    "[default: whole, or rest if -k or -m is given]",
)
@click.option("--dtype", help="auto, float32, bfloat16 or float16.  [default: auto]")
@click.option(
    "--device-map",
    callback=device_map,
    metavar="MAP",
    help="Spread the teacher over devices: auto, or PART=DEVICE,…  [default: one device]",
)
@click.option(
    "--max-memory",
    callback=memory_by_device,
    metavar="0=SIZE,…",
    help="Most memory of each device under --device-map auto.  [default: all that is free]",
)
@click.option(
    "--tensor-parallel", type=int, help="Processes that hold the teacher together.  [default: 1]"
)
@click.option(
    "--batch-size",
    type=int,
    help="Most samples per forward pass of the recording. The training of verbalizers has "
    "teacher.verbalization.batch_size.  [default: 8]",
)
@click.option(
    "--batch-tokens",
    type=int,
    help="Most tokens per forward pass of the recording, padding included.",
)
@click.option("--samples-per-shard", type=int, help="Samples per shard.  [default: 512]")
@click.option("--on-error", help="stop, or skip a sample that cannot be read.  [default: stop]")
@click.option("--device", help="auto, cpu, cuda, …  [default: auto]")
@click.option("--seed", type=int, help="Seed of everything random.  [default: 0]")
@click.option(
    "--partition",
    metavar="I/N",
    help="Write only the I-th of N partitions of the cache, as one job of an array.",
)
def command(recipe: Recipe, partition: str | None) -> None:
    """Read the teacher once and write its cache.

    Trains the teacher's verbalizers if there are none. Then records a sparse, unbiased distribution
    of every tapped layer and of the final output, at every response token. Run it again, and it
    goes on where it stopped.
    """
    log_to("stdout")
    selected = None if partition is None else Partition.parse(partition)
    validate_named(recipe, ["teacher"])
    validate_outputs(recipe)
    validate_verbalizers_there(recipe.teacher.verbalizers)
    validate_trackers(recipe)
    with stopping_on_signals():
        import_libraries()
        from vlsi_cache.teacher import dump_teacher
        from vlsi_cache.training.processes import is_main_process, leave_together

        path = dump_teacher(recipe, None, selected)
        leave_together()
    if is_main_process():
        _say_what_is_next(recipe, path)


def _say_what_is_next(recipe: Recipe, path: str | Path) -> None:
    missing = _completeness(path)
    inspecting = shlex.join(["vlsi-cache", "inspect", str(path)])
    click.echo(f"cache: {path}{missing}\nlook inside with: {inspecting}")
    if not missing:
        student = {} if recipe.student.model else {"--student": "MODEL"}
        click.echo(f"next: {next_command('train-student', student)}")


def _completeness(path: str | Path) -> str:
    """Progress of an incomplete cache, which only a partition leaves behind."""
    from vlsi_cache.store import count_shards

    published, total = count_shards(path)
    if published == total:
        return ""
    return f", incomplete: {published:,} of {total:,} shards; other partitions write the rest"
