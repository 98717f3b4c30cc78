"""``vlsi-cache inspect``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from vlsi_cache.cli.options import errors_in_one_line, recipe_flags

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import RenderableType

    from vlsi_cache.recipe import Recipe
    from vlsi_cache.store import Cache

__all__ = ["command"]


@click.command("inspect")
@errors_in_one_line
@recipe_flags({"cache": "cache.path", "output": "output"})
@click.argument("cache", metavar="[CACHE]", required=False)
@click.option("-o", "--output", metavar="DIR", help="Run folder that holds the cache.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--sample",
    metavar="ID",
    help="Show each layer's most likely tokens, for one sample.",
)
def command(recipe: Recipe, as_json: bool, sample: str | None) -> None:
    """Say what a cache holds: statistics per tap, or one sample in words.

    CACHE is a folder or URL. Without it, the command reads the recipe's cache. The cache may be
    unfinished: then the report begins with what is missing, and the command exits with 0. It exits
    with 1 if the cache is damaged.
    """
    from vlsi_cache.store import open_cache

    opened = open_cache(recipe.cache_path)
    if sample is None:
        _summary(opened, as_json=as_json)
    else:
        _sample(opened, sample, as_json=as_json)


def _summary(cache: Cache, *, as_json: bool) -> None:
    from vlsi_cache.report import summarize_cache, summary_table

    summary = summarize_cache(cache)
    _show(summary, lambda: summary_table(summary), as_json=as_json)


def _sample(cache: Cache, sample: str, *, as_json: bool) -> None:
    from vlsi_cache.report import sample_table, sample_view

    view = sample_view(cache, sample, _decoder(cache))
    _show(view, lambda: sample_table(view), as_json=as_json)


def _decoder(cache: Cache) -> Callable[[int], str]:
    """Turn token ids into text, with the tokenizer that the cache keeps."""
    from vlsi_cache.models import load_processor, tokenizer_of

    with cache.processor_folder() as folder:
        tokenizer = tokenizer_of(load_processor(str(folder)))
    return lambda token_id: str(tokenizer.decode([token_id]))


def _show(model: BaseModel, table: Callable[[], RenderableType], *, as_json: bool) -> None:
    if as_json:
        from vlsi_cache.report import json_text

        click.echo(json_text(model))
        return
    from rich.console import Console

    Console().print(table())
