"""Reports as JSON, as terminal tables or as pages."""

from __future__ import annotations

import os
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import RenderableType

    from vlsi_cache.store import Cache

__all__ = ["echo_json", "print_table", "reading_processes", "validate_page", "write_page"]

_WORTH_A_PROCESS: Final = 2_000_000
"""Tokens times taps from which a second process saves more time than its start takes."""
_MOST_PROCESSES: Final = 8
_LEAST_WIDTH: Final = 60
_PAGE: Final = b"<!doctype html"
"""What every page begins with."""


def reading_processes(cache: Cache) -> int:
    """Return how many processes read a cache's statistics."""
    if cache.num_tokens * len(cache.manifest.taps) < _WORTH_A_PROCESS:
        return 1
    from vlsi_cache.store.cache.figures.counting import available_cores

    return min(available_cores(), _MOST_PROCESSES)


def echo_json(report: BaseModel) -> None:
    """Print a report as JSON."""
    from vlsi_cache.report import json_text

    click.echo(json_text(report))


def print_table(table: RenderableType) -> None:
    """Print a table in the terminal's width, or in the least that cuts no figure off."""
    from rich.console import Console

    Console(width=max(Console().width, _LEAST_WIDTH)).print(table)


def validate_page(path: Path) -> None:
    """Refuse a page that could not be written, before hours of reading.

    Raises:
        StageError: its folder is not there, or cannot be written. Or it is a file of other content.
    """
    from vlsi_cache.errors import StageError

    if path.is_file() and (found := _other_than_a_page(path)) is not None:
        raise StageError(
            "a page would be written over this file",
            where=path,
            found=f"{path.stat().st_size:,} bytes of {found}",
            mend="Choose another file for --html, or delete this one",
        )
    folder = path.parent
    if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
        return
    if folder.is_dir():
        what, mend = "no page can be written in this folder", "Choose another folder for --html"
    elif folder.exists():
        what, mend = "the page's folder is a file", "Choose another folder for --html"
    else:
        what, mend = "the page's folder is not there", f"Make it with mkdir -p {quote(str(folder))}"
    raise StageError(what, where=folder, mend=mend)


def _other_than_a_page(path: Path) -> str | None:
    """Return what a file holds, unless that is a page or nothing."""
    from vlsi_cache.contents import HEAD_BYTES, find_contents

    with path.open("rb") as file:
        head = file.read(HEAD_BYTES).lstrip()
    return None if not head or head.lower().startswith(_PAGE) else find_contents(path).words


def write_page(path: Path, page: str, report: BaseModel, *, as_json: bool) -> None:
    """Write a page, and print its path, or what it shows as JSON."""
    from vlsi_cache.files import write_whole

    write_whole(path, page)
    if as_json:
        echo_json(report)
    else:
        click.echo(f"page: {path}")
