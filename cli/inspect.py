"""``vlsi-cache inspect``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vlsi_cache.cli.completion import complete_folders
from vlsi_cache.cli.early import validate_cache_there
from vlsi_cache.cli.options import errors_in_one_line, recipe_flags
from vlsi_cache.cli.paths import HOME_FILE
from vlsi_cache.cli.showing import (
    echo_json,
    print_table,
    reading_processes,
    validate_page,
    write_page,
)
from vlsi_cache.cli.terminal import importing, log_to
from vlsi_cache.errors import printable
from vlsi_cache.phases import phase

if TYPE_CHECKING:
    from vlsi_cache.recipe import DataSection, Recipe
    from vlsi_cache.report import SampleView
    from vlsi_cache.report.run.finding import PlaceKind
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
@click.argument("cache", metavar="[CACHE|RUN]", required=False)
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
    type=HOME_FILE,
    help="Write a page of everything, with these samples or a few at random.",
)
@click.option("--data", metavar="PATH", help="Show samples with their conversations and images.")
@click.option("--split", help="Split of a datasets source.  [default: train]")
@click.option("--limit", type=int, help="Number of first samples, as the cache was made with.")
@click.option(
    "--compare",
    metavar="OTHER",
    shell_complete=complete_folders,
    help="Set a second run or cache beside the first.",
)
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
    compare: str | None,
    max_samples: int | None,
) -> None:
    """Say what a cache holds, or how a run went.

    CACHE is a folder or URL. Without it, the command reads the recipe's cache. The report has
    statistics per tap, or samples in words. The cache may be unfinished: then the report begins
    with what is missing, and the command exits with 0. It exits with 1 if the cache is damaged.

    RUN is the output folder of a teacher's or a student's run. The report has the losses, the
    matchings and the pace of its stages, as far as they are.
    """
    log_to("stderr")
    given = click.get_current_context().params
    asks_for_data = given["data"] is not None
    if html is not None:
        validate_page(html)
    else:
        _refuse_without_a_page(samples, max_samples, asks_for_data=asks_for_data)
    if compare is not None:
        _refuse("--compare shows no samples", given, ("samples", "data"))
    if given["cache"] is not None or compare is not None:
        kind = _kind_of(recipe.cache_path)
        if compare is not None:
            _validate_kinds(recipe.cache_path, kind, compare, max_samples)
            _compare(recipe.cache_path, kind, compare, max_samples, html, as_json=as_json)
            return
        if kind == "run":
            _refuse(_no_samples(recipe.cache_path), given, ("samples", "data", "max_samples"))
            _run(recipe.cache_path, html, as_json=as_json)
            return
    validate_cache_there(recipe.cache_path)
    data = _data(recipe, asks_for_data=asks_for_data, html=html)
    _cache(recipe.cache_path, html, _Shown(samples, data, max_samples), as_json=as_json)


def _kind_of(path: str | Path) -> PlaceKind:
    """Return what a folder or URL holds, and say so if it takes long."""
    from vlsi_cache.report.run.finding import kind_of

    with phase(f"opening {printable(str(path))}", patient=True):
        return kind_of(path)


def _refuse_without_a_page(
    samples: tuple[str, ...], max_samples: int | None, *, asks_for_data: bool
) -> None:
    if samples and max_samples is not None:
        raise click.UsageError("--max-samples is for the figures, and --sample shows none")
    if asks_for_data and not samples:
        raise click.UsageError("--data is read for --sample and --html alone")


def _compare(
    path: str | Path,
    kind: str,
    other: str,
    max_samples: int | None,
    html: Path | None,
    *,
    as_json: bool,
) -> None:
    from vlsi_cache.cli.comparing import show_caches, show_runs

    if kind == "cache":
        show_caches(path, other, max_samples, html, as_json=as_json)
    else:
        show_runs(path, other, html, as_json=as_json)


@dataclass(frozen=True, slots=True)
class _Shown:
    """Which samples are shown, and with what data."""

    samples: tuple[str, ...]
    data: DataSection | None
    max_samples: int | None = None


def _refuse(why: str, given: Mapping[str, object], names: Sequence[str]) -> None:
    """Refuse flags that would be without effect."""
    flags = {"samples": "--sample", "data": "--data", "max_samples": "--max-samples"}
    for name in names:
        if given[name] not in (None, ()):
            raise click.UsageError(f"{why}, so {flags[name]} has no effect")


def _no_samples(run: str | Path) -> str:
    """Return why a run has no samples, and where they are if its cache lies in it."""
    inside = Path(run) / "cache"
    return "a run has no samples" + (f" ({inside} has them)" if inside.is_dir() else "")


def _validate_kinds(path: str | Path, kind: str, other: str, max_samples: int | None) -> None:
    """Refuse to compare a run with a cache, or samples of runs."""
    from vlsi_cache.errors import StageError
    from vlsi_cache.report.run.finding import kind_of

    other_kind = kind_of(other)
    if other_kind != kind:
        raise StageError(
            f"a {kind} cannot be compared with a {other_kind}",
            where=path,
            expected="two runs or two caches",
            found=f"{other} is a {other_kind}",
            mend=f"Give --compare another {kind}",
        )
    if kind == "run":
        _refuse("a run has no samples", {"max_samples": max_samples}, ("max_samples",))


def _data(recipe: Recipe, *, asks_for_data: bool, html: Path | None) -> DataSection | None:
    """Return where the conversations of the samples are, if they are to be shown."""
    is_named = recipe.data.path is not None or bool(recipe.data.sources)
    return recipe.data if is_named and (html is not None or asks_for_data) else None


def _run(path: str | Path, html: Path | None, *, as_json: bool) -> None:
    from vlsi_cache.report.run.summarizing import summarize_run

    run = summarize_run(path)
    if html is not None:
        from vlsi_cache.report.page.runs import render_run

        write_page(html, render_run(run), run, as_json=as_json)
    elif as_json:
        echo_json(run)
    else:
        from vlsi_cache.report.run.terminal import run_table

        print_table(run_table(run))


def _cache(path: str | Path, html: Path | None, shown: _Shown, *, as_json: bool) -> None:
    from vlsi_cache.store import open_cache

    with phase(f"opening {printable(str(path))}", patient=True):
        opened = open_cache(path)
    if html is not None:
        _page(opened, html, shown, as_json=as_json)
    elif shown.samples:
        _samples(opened, shown, as_json=as_json)
    else:
        _summary(opened, shown.max_samples, as_json=as_json)


def _summary(cache: Cache, max_samples: int | None, *, as_json: bool) -> None:
    from vlsi_cache.report import summarize_cache, summary_table

    summary = summarize_cache(cache, max_samples=max_samples, processes=reading_processes(cache))
    if as_json:
        echo_json(summary)
    else:
        print_table(summary_table(summary))


def _samples(cache: Cache, shown: _Shown, *, as_json: bool) -> None:
    from vlsi_cache.report import SampleViews, sample_table

    views = _views(cache, shown.samples, shown.data)
    if as_json:
        echo_json(views[0] if len(views) == 1 else SampleViews(views))
        return
    for view in views:
        print_table(sample_table(view))


def _page(cache: Cache, path: Path, shown: _Shown, *, as_json: bool) -> None:
    from vlsi_cache.report import summarize_cache
    from vlsi_cache.report.page import MAX_PAGE_SAMPLES, CachePage, render_page
    from vlsi_cache.report.sample import random_samples

    if len(shown.samples) > MAX_PAGE_SAMPLES:
        raise click.UsageError(f"a page shows at most {MAX_PAGE_SAMPLES} samples")
    summary = summarize_cache(
        cache, max_samples=shown.max_samples, processes=reading_processes(cache)
    )
    views = _views(cache, shown.samples or random_samples(cache), shown.data)
    page = CachePage(summary=summary, samples=views, chosen=bool(shown.samples))
    write_page(path, render_page(page), summary, as_json=as_json)


def _views(
    cache: Cache, samples: Sequence[str | int], section: DataSection | None
) -> tuple[SampleView, ...]:
    """Turn samples into words, with their conversations if the data is named."""
    if not samples:
        return ()
    from vlsi_cache.report import sample_view

    for sample in samples:
        cache[sample]  # one that is not there is refused before libraries are imported
    with importing():
        from vlsi_cache.data import load_data
        from vlsi_cache.report.conversation import conversation_view
    decode = _decoder(cache)
    if section is None:
        return tuple(sample_view(cache, sample, decode) for sample in samples)
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
