"""``vlsi-cache verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vlsi_cache.cli.early import validate_cache_there
from vlsi_cache.cli.options import errors_in_one_line, recipe_flags
from vlsi_cache.cli.terminal import counting, log_to
from vlsi_cache.errors import printable

if TYPE_CHECKING:
    from vlsi_cache.recipe import Recipe
    from vlsi_cache.store import Verification

__all__ = ["command"]


@click.command("verify", short_help="Prove that a cache is as it was written.")
@errors_in_one_line
@recipe_flags({"cache": "cache.path", "output": "output"})
@click.argument("cache", metavar="[CACHE]", required=False)
@click.option("-o", "--output", metavar="DIR", help="Run folder, whose cache is meant.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(recipe: Recipe, as_json: bool) -> None:
    """Prove that a cache is as it was written: read every file and compare it with its seal.

    CACHE is its folder or URL, by default the recipe's. The command names each damaged, missing,
    swapped or extra file with what to do about it, and exits with 1 if there is one. A cache that
    is not finished yet is not damaged.
    """
    log_to("stderr")
    validate_cache_there(recipe.cache_path)
    found = _verify(recipe.cache_path)
    if as_json:
        from vlsi_cache.report import json_text

        click.echo(json_text(found))
    else:
        from rich.console import Console

        from vlsi_cache.report import verification_table

        Console().print(verification_table(found))
    if not found.sound:
        raise SystemExit(1)


def _verify(path: str | Path) -> Verification:
    from vlsi_cache.store import verify_cache

    with counting(f"verifying {printable(str(path))}", "MB", each=10**6) as report:
        return verify_cache(path, report)
