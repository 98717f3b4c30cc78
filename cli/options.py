"""What commands share: the recipe, the flags that override it, and errors in one line."""

from __future__ import annotations

import functools
import json
import re
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from shlex import quote
from typing import Any, Final, TypeVar

import click

from vlsi_cache.cli.completion import ASSIGNMENT, complete_by_key
from vlsi_cache.cli.next_step import Given, keep_flags, remember_given
from vlsi_cache.cli.paths import HOME_PATH, note_on_paths, remember_paths
from vlsi_cache.errors import VlsiCacheError, printable
from vlsi_cache.interruption import Interrupted
from vlsi_cache.limits import plain_limit_errors
from vlsi_cache.phases import speaks_for_all
from vlsi_cache.recipe import Recipe, RecipeProblemsError, keys_named, load_recipe

__all__ = [
    "RecipeCommand",
    "device_map",
    "errors_in_one_line",
    "memory_by_device",
    "recipe_flags",
    "taps_list",
]

_SIZE: Final = re.compile(r"\d+(\.\d+)?\s*[KMG]i?B", re.IGNORECASE)
"""A size of memory, as accelerate reads it."""

F = TypeVar("F", bound=Callable[..., Any])


class RecipeCommand(click.Command):
    """A command whose unknown options are looked for among the recipe's keys."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, and name the keys that an unknown option may mean."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            keys = keys_named(error.option_name.lstrip("-").replace("-", "_"))
            if not keys:
                raise
            ways = " or ".join(f"--set {key}=VALUE" for key in keys)
            raise click.NoSuchOption(
                error.option_name,
                message=f"{error.message} The recipe has such a key: {ways}",
                possibilities=error.possibilities,
                ctx=ctx,
            ) from None
        except click.UsageError as error:
            extra = re.fullmatch(r"Got unexpected extra arguments? \((.*)\)", error.message)
            if extra is None or not Path(extra[1]).exists():
                raise
            flag = "--recipe" if extra[1].endswith((".yaml", ".yml")) else "--data"
            way = f"Perhaps {flag} {quote(extra[1])} is meant"
            raise click.UsageError(f"{error.message}. {way}", ctx=ctx) from None


def errors_in_one_line(function: F) -> F:
    """Print an error that the user can mend in one line. With ``--debug``, show its traceback."""

    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @functools.wraps(function)
    def guarded(*args: Any, debug: bool, **kwargs: Any) -> Any:
        try:
            with plain_limit_errors():
                return function(*args, **kwargs)
        except VlsiCacheError as error:
            if debug:
                raise
            click.echo(f"error: {error}", err=True)
            if note := note_on_paths():
                click.echo(note, err=True)
            raise SystemExit(error.exit_code) from None
        except OSError as error:
            if debug or error.filename is None:
                raise
            click.echo(f"error: {printable(str(error.filename))}: {error.strerror}", err=True)
            raise SystemExit(1) from None
        except Interrupted as interruption:
            if speaks_for_all():  # all processes stop, and one says so
                click.echo(str(interruption), err=True)
            raise SystemExit(interruption.exit_code) from None
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            raise SystemExit(128 + signal.SIGINT) from None

    return guarded  # type: ignore[return-value]


def recipe_flags(flags: Mapping[str, str], *, is_argument: bool = False) -> Callable[[F], F]:
    """Add ``--recipe`` and ``--set``, and give the command a validated ``recipe``.

    Args:
        flags: dotted recipe key by the parameter name of each flag that overrides it.
        is_argument: whether the recipe may also stand alone, without ``--recipe``.
    """

    def decorate(function: F) -> F:
        for parameter in getattr(function, "__click_params__", ()):
            if parameter.name in flags:
                complete_by_key(parameter, flags[parameter.name])

        @_recipe_option
        @_set_option
        @functools.wraps(function)
        def with_recipe(
            *args: Any, recipe_path: Path | None, assignments: tuple[str, ...], **kwargs: Any
        ) -> Any:
            alone: Path | None = kwargs.pop("recipe_alone", None)
            if alone is not None and recipe_path is not None:
                raise click.UsageError("the recipe is given twice: alone, and by --recipe")
            given = {name: kwargs.pop(name) for name in flags}
            typed = {name: value for name, value in given.items() if value is not None}
            recipe = _load(flags, alone or recipe_path, assignments, typed)
            return function(*args, recipe=recipe, **kwargs)

        keep_flags(with_recipe, flags)
        decorated: Any = with_recipe
        if is_argument:
            alone = click.argument(
                "recipe_alone", metavar="[RECIPE]", required=False, type=HOME_PATH
            )
            decorated = alone(with_recipe)
        return decorated  # type: ignore[no-any-return]

    return decorate


_recipe_option = click.option(
    "-r",
    "--recipe",
    "recipe_path",
    type=HOME_PATH,
    help="YAML recipe of the whole run. Flags override it.",
)
_set_option = click.option(
    "--set",
    "assignments",
    type=ASSIGNMENT,
    multiple=True,
    metavar="KEY=VALUE",
    help="Override any recipe key, e.g. --set interaction.lora.rank=32. Repeatable.",
)


def _load(
    flags: Mapping[str, str],
    path: Path | None,
    assignments: tuple[str, ...],
    typed: Mapping[str, Any],
) -> Recipe:
    """Load the recipe with what was typed. Errors name the flags, and the next command has them."""
    overrides = [f"{flags[name]}={json.dumps(value)}" for name, value in typed.items()]
    try:
        recipe = load_recipe(path, [*assignments, *overrides])
    except RecipeProblemsError as error:
        names = {one.partition("=")[0]: f"--set {one.partition('=')[0]}" for one in assignments}
        names |= {flags[name]: f"--{name.replace('_', '-')}" for name in typed}
        raise error.naming(names) from None
    by_key = {flags[name]: value for name, value in typed.items()}
    remember_given(Given(path, assignments, by_key))
    if path is not None:
        remember_paths(recipe, path)
    return recipe


def taps_list(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
    """Read ``2,6,10`` as ``[2, 6, 10]``."""
    if value is None:
        return None
    try:
        return [int(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"expected block indices such as 2,6,10, found {value!r}"
        ) from None


def _by_device(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
    """Read ``0=70GiB,cpu=200GiB`` as a mapping."""
    if value is None:
        return None
    pairs = [part.partition("=") for part in value.split(",")]
    if not all(equals and size for _, equals, size in pairs):
        raise click.BadParameter(f"expected pairs such as 0=70GiB,cpu=200GiB, found {value!r}")
    return {name: size for name, _, size in pairs}


def memory_by_device(context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    """Read ``0=70GiB,cpu=200GiB`` as a mapping to sizes."""
    found = _by_device(context, parameter, value)
    for size in (found or {}).values():
        if _SIZE.fullmatch(size) is None:
            raise click.BadParameter(f"expected a size such as 70GiB, found {size!r}")
    return found


def device_map(context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    """Read a name such as ``auto`` as it is, and ``model=0,lm_head=1`` as a mapping."""
    return _by_device(context, parameter, value) if "=" in (value or "") else value
