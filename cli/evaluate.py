"""``vlsi-cache evaluate``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vlsi_cache.cli.early import validate_cache_there, validate_verbalizers_there
from vlsi_cache.cli.options import RecipeCommand, errors_in_one_line, recipe_flags
from vlsi_cache.cli.terminal import import_libraries, log_to
from vlsi_cache.recipe import validate_named

if TYPE_CHECKING:
    from vlsi_cache.recipe import Recipe

__all__ = ["command"]


@click.command("evaluate", cls=RecipeCommand)
@errors_in_one_line
@recipe_flags(
    {
        "model": "student.model",
        "verbalizers": "student.verbalizers",
        "dtype": "student.dtype",
        "data": "data.path",
        "split": "data.split",
        "limit": "data.limit",
        "max_length": "data.max_length",
        "on_error": "data.on_error",
        "cache": "cache.path",
        "device": "device",
    }
)
@click.argument("model", required=False)
@click.option("--data", metavar="PATH", help="Held-out conversations, as for the other commands.")
@click.option("--split", help="Split of a datasets source.  [default: train]")
@click.option("--limit", type=int, help="Number of first samples to read.")
@click.option("--max-length", type=int, help="Most tokens of one conversation.")
@click.option("--on-error", help="stop, or skip: samples that fail are left out.")
@click.option("--cache", metavar="PATH", help="Measure the divergence to this record of the data.")
@click.option("--verbalizers", metavar="PATH", help="Report what each layer says, read by these.")
@click.option(
    "--generate",
    "max_new_tokens",
    type=click.IntRange(0),
    default=0,
    metavar="TOKENS",
    help="Answer every question with at most so many tokens, and count right answers.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Conversations per forward pass.",
)
@click.option("--dtype", help="auto, float32, bfloat16 or float16.  [default: auto]")
@click.option("--device", help="auto, cpu, cuda, …  [default: auto]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(recipe: Recipe, max_new_tokens: int, batch_size: int, as_json: bool) -> None:
    """Evaluate MODEL on held-out conversations.

    Reports the loss of the response tokens. With --cache also the divergence to the teacher, with
    --verbalizers what each layer says, and with --generate how many answers are right.
    """
    if recipe.student.model is None:
        raise click.UsageError("give MODEL, a from_pretrained name or folder")
    if recipe.student.model.endswith((".yaml", ".yml")):
        problem = f"{recipe.student.model} is a recipe, and MODEL is expected. Give it by --recipe"
        raise click.UsageError(problem)
    log_to("stderr")
    validate_named(recipe, ["student"])
    validate_verbalizers_there(recipe.student.verbalizers)
    if recipe.cache.path is not None:
        validate_cache_there(recipe.cache_path)
    import_libraries()
    from vlsi_cache.evaluation import evaluate_model, evaluation_table

    found = evaluate_model(
        recipe,
        with_cache=recipe.cache.path is not None,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    if as_json:
        click.echo(found.model_dump_json(indent=2))
    else:
        from rich.console import Console

        Console(soft_wrap=True).print(evaluation_table(found))
