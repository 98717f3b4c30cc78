"""``vlsi-cache inspect``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vlsi_cache.cli.options import errors_in_one_line, recipe_flags

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import RenderableType

    from vlsi_cache.recipe import DataSection, Recipe
    from vlsi_cache.report import SampleView
    from vlsi_cache.store import Cache

__all__ = ["command"]


@click.command("inspect")
@errors_in_one_line
@recipe_flags(
    {
        "cache": "cache.path",
        "output": "output",
        "data": "data.path",
        "split": "data.split",
        "limit": "data.limit",
    }
)
@click.argument("cache", metavar="[CACHE]", required=False)
@click.option("-o", "--output", metavar="DIR", help="Run folder that holds the cache.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--sample",
    "samples",
    metavar="ID",
    multiple=True,
    help="Show each layer's most likely tokens, for this sample. Repeatable.",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a page of everything, with these samples or a few at random.",
)
@click.option("--data", metavar="PATH", help="Show samples with their conversations and images.")
@click.option("--split", help="Split of a datasets source.  [default: train]")
@click.option("--limit", type=int, help="Number of first samples, as the cache was made with.")
@click.option(
    "--max-samples",
    type=click.IntRange(2),
    metavar="N",
    help="Take the figures of N samples at random, with standard errors.",
)
def command(
    recipe: Recipe,
    as_json: bool,
    samples: tuple[str, ...],
    html: Path | None,
    max_samples: int | None,
) -> None:
    """Say what a cache holds: statistics per tap, or samples in words.

    CACHE is a folder or URL. Without it, the command reads the recipe's cache. The cache may be
    unfinished: then the report begins with what is missing, and the command exits with 0. It exits
    with 1 if the cache is damaged.
    """
    from vlsi_cache.store import open_cache

    asks_for_data = click.get_current_context().params["data"] is not None
    if samples and not html and max_samples is not None:
        raise click.UsageError("--max-samples is for the figures, and --sample shows none")
    if asks_for_data and not samples and not html:
        raise click.UsageError("--data is read for --sample and --html alone")
    opened = open_cache(recipe.cache_path)
    with_data = bool(recipe.data.path is not None or recipe.data.sources)
    with_data = with_data and (html is not None or asks_for_data)
    data = recipe.data if with_data else None
    if html is not None:
        _page(opened, html, _Shown(samples, data, max_samples), as_json=as_json)
    elif samples:
        _samples(opened, _Shown(samples, data), as_json=as_json)
    else:
        _summary(opened, max_samples, as_json=as_json)


@dataclass(frozen=True, slots=True)
class _Shown:
    """Which samples are shown, and with what data."""

    samples: tuple[str, ...]
    data: DataSection | None
    max_samples: int | None = None


def _summary(cache: Cache, max_samples: int | None, *, as_json: bool) -> None:
    from vlsi_cache.report import summarize_cache, summary_table

    summary = summarize_cache(cache, max_samples=max_samples)
    if as_json:
        _echo_json(summary)
    else:
        _print(summary_table(summary))


def _samples(cache: Cache, shown: _Shown, *, as_json: bool) -> None:
    from vlsi_cache.report import SampleViews, sample_table

    views = _views(cache, shown.samples, shown.data)
    if as_json:
        _echo_json(views[0] if len(views) == 1 else SampleViews(views))
        return
    for view in views:
        _print(sample_table(view))


def _page(cache: Cache, path: Path, shown: _Shown, *, as_json: bool) -> None:
    from vlsi_cache.files import write_whole
    from vlsi_cache.report import summarize_cache
    from vlsi_cache.report.page import MAX_PAGE_SAMPLES, CachePage, render_page
    from vlsi_cache.report.sample import random_samples

    if len(shown.samples) > MAX_PAGE_SAMPLES:
        raise click.UsageError(f"a page shows at most {MAX_PAGE_SAMPLES} samples")
    summary = summarize_cache(cache, max_samples=shown.max_samples)
    views = _views(cache, shown.samples or random_samples(cache), shown.data)
    page = CachePage(summary=summary, samples=views, chosen=bool(shown.samples))
    write_whole(path, render_page(page))
    if as_json:
        _echo_json(summary)
    else:
        click.echo(f"page: {path}")


def _views(
    cache: Cache, samples: Sequence[str | int], section: DataSection | None
) -> tuple[SampleView, ...]:
    """Turn samples into words, with their conversations if the data is named."""
    from vlsi_cache.report import sample_view

    if not samples:
        return ()
    decode = _decoder(cache)
    if section is None:
        return tuple(sample_view(cache, sample, decode) for sample in samples)
    from vlsi_cache.data import load_data
    from vlsi_cache.report.conversation import conversation_view

    data = load_data(section)
    return tuple(
        sample_view(cache, sample, decode, conversation_view(data, cache, sample))
        for sample in samples
    )


def _decoder(cache: Cache) -> Callable[[int], str]:
    """Turn token ids into text, with the tokenizer that the cache keeps."""
    from vlsi_cache.models import load_processor, tokenizer_of

    with cache.processor_folder() as folder:
        tokenizer = tokenizer_of(load_processor(str(folder)))
    return lambda token_id: str(tokenizer.decode([token_id]))


def _echo_json(report: BaseModel) -> None:
    from vlsi_cache.report import json_text

    click.echo(json_text(report))


def _print(table: RenderableType) -> None:
    from rich.console import Console

    Console().print(table)
