"""What a shell completes: the values of flags, and the keys of ``--set``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any, Final, Literal, get_args, get_origin

import click
from click.shell_completion import CompletionItem

from vlsi_cache.recipe import AUTOMATIC, Recipe
from vlsi_cache.recipe.section import Section

__all__ = ["ASSIGNMENT", "complete_by_key", "complete_folders"]


class _Path(click.types.StringParamType):
    """A text whose completions are folders, or files and folders.

    Args:
        kind: what the shell looks for.
    """

    def __init__(self, kind: Literal["dir", "file"]) -> None:
        self.kind = kind

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Leave it to the shell, which knows the disk."""
        return [CompletionItem(incomplete, type=self.kind)]


class _Words(click.types.StringParamType):
    """A text whose completions are words.

    Args:
        words: all of them.
        joined: whether several may stand there, with commas between.
    """

    def __init__(self, words: Sequence[str], *, joined: bool = False) -> None:
        self.words = words
        self.joined = joined

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the words that begin like what is typed."""
        before, comma, last = incomplete.rpartition(",") if self.joined else ("", "", incomplete)
        given = before.split(",")
        found = [word for word in self.words if word.startswith(last) and word not in given]
        return [CompletionItem(before + comma + word) for word in found]


class _Assignment(click.types.StringParamType):
    """A text whose completions are the recipe's keys, and their words after ``=``."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the keys that begin like what is typed, or the words of the key."""
        key, equals, _ = incomplete.partition("=")
        if equals:
            found = [f"{key}={word}" for word in _words(_keys().get(key))]
        else:
            found = [f"{known}=" for known in _keys()]
        return [CompletionItem(one) for one in found if one.startswith(incomplete)]


_FOLDER: Final = _Path("dir")
ASSIGNMENT: Final = _Assignment()
"""``KEY=VALUE``."""
_BY_KEY: Final = MappingProxyType(
    {
        "data.path": _Path("file"),
        "teacher.model": _FOLDER,
        "student.model": _FOLDER,
        "teacher.verbalizers": _FOLDER,
        "student.verbalizers": _FOLDER,
        "output": _FOLDER,
        "cache.path": _FOLDER,
        "device": _Words(("auto", "cpu", "cuda", "mps", "xpu")),
        "teacher.device_map": _Words(AUTOMATIC),
    }
)


def complete_folders(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the folders of the disk, for a flag that is not the recipe's."""
    return _FOLDER.shell_complete(ctx, param, incomplete)


def complete_by_key(parameter: click.Parameter, key: str) -> None:
    """Let the shell complete what a recipe's key may hold. What is accepted stays as it is.

    Args:
        parameter: the flag that gives the key's value.
        key: the dotted key.
    """
    if not isinstance(parameter.type, click.types.StringParamType):
        return  # a number, or a flag without a value
    found = _BY_KEY.get(key)
    if found is None and (words := _words(_keys()[key])):
        found = _Words(words, joined=get_origin(_keys()[key]) is list)
    if found is not None:
        parameter.type = found


@cache
def _keys() -> dict[str, Any]:
    """Types of the recipe's values by their dotted keys."""
    return dict(_walk(Recipe, ""))


def _walk(section: type[Section], inside: str) -> Iterator[tuple[str, Any]]:
    for name, field in section.model_fields.items():
        kind: Any = field.annotation
        choices = (kind,) if get_origin(kind) is list else (kind, *get_args(kind))
        nested = [one for one in choices if isinstance(one, type) and issubclass(one, Section)]
        for one in nested:
            yield from _walk(one, f"{inside}{name}.")
        if not nested:
            yield f"{inside}{name}", kind


def _words(kind: Any) -> list[str]:
    """The words that a type allows."""
    if get_origin(kind) is Literal:
        return [str(word) for word in get_args(kind)]
    if kind is bool:
        return ["true", "false"]
    return [word for inner in get_args(kind) for word in _words(inner)]
