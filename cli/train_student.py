"""``vlsi-cache train-student``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlsi_cache.cli.early import validate_cache_there, validate_verbalizers_there
from vlsi_cache.cli.next_step import loading_code, next_command
from vlsi_cache.cli.options import RecipeCommand, errors_in_one_line, recipe_flags, taps_list
from vlsi_cache.cli.signals import stopping_on_signals
from vlsi_cache.cli.terminal import import_libraries, log_to
from vlsi_cache.recipe import validate_named, validate_trackers
from vlsi_cache.recipe.outputs import validate_outputs

if TYPE_CHECKING:
    from vlsi_cache.recipe import Recipe

__all__ = ["command"]


def _stages_list(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
    return None if value is None else [part.strip() for part in value.split(",")]


@click.command("train-student", cls=RecipeCommand)
@errors_in_one_line
@recipe_flags(
    {
        "student": "student.model",
        "data": "data.path",
        "split": "data.split",
        "limit": "data.limit",
        "on_error": "data.on_error",
        "output": "output",
        "cache": "cache.path",
        "follow": "interaction.follow",
        "follow_timeout": "interaction.follow_timeout_seconds",
        "taps": "student.taps",
        "stages": "stages",
        "verbalization_steps": "student.verbalization.steps",
        "interaction_steps": "interaction.steps",
        "finetuning_steps": "finetuning.steps",
        "dtype": "student.dtype",
        "device": "device",
        "seed": "seed",
    },
    is_argument=True,
)
@click.option("--student", metavar="MODEL", help="from_pretrained name or folder of the student.")
@click.option("--data", metavar="PATH", help="The data of the cache.")
@click.option("--split", help="Split of a datasets source.  [default: train]")
@click.option("--limit", type=int, help="Number of first samples to read.")
@click.option("--on-error", help="stop, or skip a sample that cannot be read.  [default: stop]")
@click.option("-o", "--output", metavar="DIR", help="Run folder.  [default: runs/vlsi]")
@click.option("--cache", metavar="DIR", help="Cache folder or URL.  [default: OUTPUT/cache]")
@click.option("--follow", is_flag=True, default=None, help="Train while the cache is written.")
@click.option(
    "--follow-timeout",
    type=float,
    metavar="SECONDS",
    help="Longest wait for a new shard.  [default: 3600]",
)
@click.option(
    "--taps",
    callback=taps_list,
    metavar="I,J,…",
    help="Decoder blocks to train at, from 0.  [default: every 4th from 2]",
)
@click.option(
    "--stages",
    callback=_stages_list,
    metavar="A,B,…",
    help="Some of verbalization, interaction, finetuning.  [default: all three]",
)
@click.option("--verbalization-steps", type=int, help="Steps of stage one.  [default: one epoch]")
@click.option("--interaction-steps", type=int, help="Steps of stage two.  [default: one epoch]")
@click.option("--finetuning-steps", type=int, help="Steps of stage three.  [default: one epoch]")
@click.option("--dtype", help="auto, float32, bfloat16 or float16.  [default: auto]")
@click.option("--device", help="auto, cpu, cuda, …  [default: auto]")
@click.option("--seed", type=int, help="Seed of everything random.  [default: 0]")
def command(recipe: Recipe) -> None:
    """Train the student from the cache, without the teacher.

    There are three stages. Verbalization trains the student's verbalizers. Interaction trains LoRA
    adapters: each tapped layer learns from the teacher layer that it is matched with. Fine-tuning
    trains the whole student. Finished stages are skipped. Interrupted stages go on from their last
    checkpoint. The result loads with plain from_pretrained.

    With --follow, the teacher may still be writing the cache. The student trains on the shards that
    exist, in the order in which they appear, and waits for more.
    """
    log_to("stdout")
    validate_named(recipe, ["student"])
    validate_outputs(recipe)
    validate_trackers(recipe)
    validate_verbalizers_there(recipe.student.verbalizers)
    if "interaction" in recipe.stages and not recipe.interaction.follow:
        validate_cache_there(recipe.cache_path)
    with stopping_on_signals():
        import_libraries()
        from vlsi_cache.student import train_student
        from vlsi_cache.training.processes import is_main_process, leave_together

        result = train_student(recipe)
        leave_together()
    if is_main_process():
        _say_what_is_next(recipe, result)


def _say_what_is_next(recipe: Recipe, result: Path) -> None:
    if recipe.stages == ["verbalization"]:
        click.echo(f"verbalizers: {result}\nnext: {next_command('train-student', {})}")
        return
    click.echo(f"student: {result}\nload it with: {loading_code(result)}")
    click.echo(f"next: {shlex.join(['vlsi-cache', 'evaluate', str(result), *_held_out(recipe)])}")


def _held_out(recipe: Recipe) -> list[str]:
    """Return the flags of the held-out data, as far as the recipe knows it."""
    path = recipe.held_out.path or (recipe.data.path if recipe.held_out.split else None)
    split = recipe.held_out.split or recipe.data.split
    flags = ["--data", path if isinstance(path, str) else "HELD-OUT"]
    return flags + (["--split", split] if isinstance(path, str) and split != "train" else [])
