"""Paths as users type them: with ``~``, and beside a recipe that lies elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Any, Final

import click

from vlsi_cache.errors import printable
from vlsi_cache.recipe import Recipe, at_home, is_there

__all__ = ["HOME_FILE", "HOME_PATH", "note_on_paths", "remember_paths"]

_META: Final = "vlsi_cache.beside_the_recipe"


class _HomePath(click.Path):
    """A path in which ``~`` is the user's home, also where the shell left it as it was."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Replace ``~`` before anything is looked for."""
        return super().convert(at_home(str(value)), param, ctx)


HOME_PATH: Final = _HomePath(path_type=Path)
"""A file or folder."""
HOME_FILE: Final = _HomePath(path_type=Path, dir_okay=False)
"""A file."""


def remember_paths(recipe: Recipe, path: Path) -> None:
    """Keep the names that lie beside the recipe's file, and not where the command runs."""
    folder = path.parent
    found = [
        name for name in _names(recipe) if not is_there(Path(name)) and is_there(folder / name)
    ]
    if found and folder.resolve() != Path.cwd().resolve():
        click.get_current_context().meta[_META] = folder, found


def note_on_paths() -> str | None:
    """Return the line that says which paths lie beside the recipe, if some do."""
    context = click.get_current_context(silent=True)
    if context is None or _META not in context.meta:
        return None
    folder, names = context.meta[_META]
    return printable(
        f"note: paths in a recipe begin at the folder that you are in, which is {Path.cwd()}. "
        f"Beside the recipe there is {' and '.join(names)}: run cd {quote(str(folder))} first"
    )


def _names(recipe: Recipe) -> Iterator[str]:
    """Yield the relative names of models, data and folders that a recipe reads."""
    given = [recipe.teacher.model, recipe.student.model, recipe.data.path, recipe.cache.path]
    given += [recipe.teacher.verbalizers, recipe.student.verbalizers, recipe.held_out.path]
    given += [source.path for source in recipe.data.sources]
    for one in given:
        for name in one if isinstance(one, list) else [one]:
            if name is not None and not Path(name).is_absolute() and "://" not in str(name):
                yield str(name)
