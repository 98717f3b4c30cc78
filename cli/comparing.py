"""Two runs or two caches side by side, for ``vlsi-cache inspect --compare``."""

from __future__ import annotations

from pathlib import Path

from vlsi_cache.cli.showing import echo_json, print_table, reading_processes, write_page

__all__ = ["show_caches", "show_runs"]


def show_runs(first: str | Path, second: str, html: Path | None, *, as_json: bool) -> None:
    """Print or write what two runs have in common and what not."""
    from vlsi_cache.report.comparison import compare_runs
    from vlsi_cache.report.run.summarizing import summarize_run

    compared = compare_runs(summarize_run(first), summarize_run(second))
    if html is not None:
        from vlsi_cache.report.page.runs import render_runs

        write_page(html, render_runs(compared), compared, as_json=as_json)
    elif as_json:
        echo_json(compared)
    else:
        from vlsi_cache.report.run.terminal import comparison_table

        print_table(comparison_table(compared))


def show_caches(
    first: str | Path, second: str, max_samples: int | None, html: Path | None, *, as_json: bool
) -> None:
    """Print or write what two caches have in common and what not."""
    from vlsi_cache.report import summarize_cache
    from vlsi_cache.report.comparison import compare_caches
    from vlsi_cache.store import open_cache

    caches = open_cache(first), open_cache(second)
    one, other = (
        summarize_cache(cache, max_samples=max_samples, processes=reading_processes(cache))
        for cache in caches
    )
    compared = compare_caches(one, other, [cache.manifest for cache in caches])
    if html is not None:
        from vlsi_cache.report.page.caches import render_caches

        write_page(html, render_caches(compared), compared, as_json=as_json)
    elif as_json:
        echo_json(compared)
    else:
        from vlsi_cache.report.compared import caches_table

        print_table(caches_table(compared))
