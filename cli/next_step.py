"""The command or the line of Python that comes after a command, with the user's own paths."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import click
import yaml

__all__ = ["Given", "keep_flags", "keys_of_flags", "loading_code", "next_command", "remember_given"]

_META: Final = "vlsi_cache.given"
_KEYS: Final = "__recipe_keys__"
_MODELS: Final = ("teacher.model", "student.model")
"""Keys that become flags again, if a command before had no flag for them."""
_SAME: Final = {"cache.on_error": "data.on_error", "data.on_error": "cache.on_error"}
"""Keys that mean the same to a command that has a flag for one of them."""
_UNREAD: Final = {
    "train-student": (
        *("teacher", "cache.k", "cache.m", "cache.drawn_from", "cache.hidden"),
        *("cache.samples_per_shard", "cache.batch_size", "cache.batch_tokens", "cache.workers"),
    ),
}
"""Sections and keys that a command does not read."""


@dataclass(frozen=True, slots=True)
class Given:
    """What a user gave to a command."""

    recipe: Path | None
    """The recipe's file."""
    assignments: tuple[str, ...]
    """The values of ``--set``."""
    flags: Mapping[str, Any]
    """Dotted recipe key → value, for the other flags."""


def remember_given(given: Given) -> None:
    """Keep what was given until the command ends."""
    click.get_current_context().meta[_META] = given


def keep_flags(command: Any, keys: Mapping[str, str]) -> None:
    """Remember the recipe's keys of a command's flags.

    Args:
        command: the function behind the command.
        keys: dotted recipe key by the name of the parameter.
    """
    setattr(command, _KEYS, keys)


def next_command(name: str, more: Mapping[str, str]) -> str:
    """Return the command line that goes on from this command.

    Args:
        name: the next command.
        more: flags that it needs besides.
    """
    given: Given = click.get_current_context().meta[_META]
    flags = _flags_of(name)
    values, assignments = _by_flag(given, flags, _UNREAD.get(name, ()))
    words = ["vlsi-cache", name]
    if given.recipe is not None:
        words += ["--recipe", str(given.recipe)]
    for flag in [*flags.values(), *more]:
        if flag in more:
            words += [flag, more[flag]] if flag not in words else []
        elif values.get(flag) is True:
            words.append(flag)
        elif flag in values:
            words += [flag, _typed(values[flag])]
    assignments += _learning_hidden(name, given.assignments)
    words += [word for one in assignments for word in ("--set", one)]
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    """Return a word as a shell reads it. What a terminal would obey stands in ``$'…'``."""
    if word.isprintable():
        return shlex.quote(word)
    plain = word.replace("\\", "\\\\").replace("'", "\\'")
    shown = "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in plain)
    return f"$'{shown}'"


def _flags_of(name: str) -> dict[str, str]:
    from vlsi_cache.cli.main import COMMANDS

    return keys_of_flags(import_module(COMMANDS[name]).command)


def keys_of_flags(command: click.Command) -> dict[str, str]:
    """Return the flags of a command by their recipe keys, in the order of its help."""
    keys: Mapping[str, str] = getattr(command.callback, _KEYS)
    options = [one for one in command.params if isinstance(one, click.Option) and one.name in keys]
    return {keys[one.name]: max(one.opts, key=len) for one in options if one.name is not None}


def _by_flag(
    given: Given, flags: Mapping[str, str], unread: tuple[str, ...]
) -> tuple[dict[str, Any], list[str]]:
    """Return the values of a command's flags, and what is given to it by assignments.

    Args:
        given: what was given to the command before.
        flags: flag of the next command by its recipe key.
        unread: sections and keys that it does not read.
    """
    values: dict[str, Any] = {}
    assignments: list[str] = []
    for assignment in given.assignments:
        key, _, text = assignment.partition("=")
        if key in _MODELS and key in flags and text:
            values[flags[key]] = yaml.safe_load(text)
        elif not _is_in(key, unread):
            assignments.append(assignment)
    for key, value in given.flags.items():
        own = _SAME[key] if key not in flags and key in _SAME else key
        if value is None or _is_in(own, unread):
            continue
        if own in flags:
            values[flags[own]] = value
        else:
            assignments.append(f"{key}={_yaml(value)}")
    return values, assignments


def _is_in(key: str, sections: Sequence[str]) -> bool:
    return any(f"{key}.".startswith(f"{section}.") for section in sections)


def _typed(value: Any) -> str:
    """Return a flag's value as it is typed."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}={one}" for name, one in value.items())
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _yaml(value: Any) -> str:
    """Return a value as ``--set`` reads it. A text stands without quotes where it can."""
    with suppress(yaml.YAMLError):
        if isinstance(value, str) and yaml.safe_load(value) == value:
            return value
    return json.dumps(value, ensure_ascii=False)


def _learning_hidden(name: str, assignments: Sequence[str]) -> list[str]:
    """Return the assignment that learns a hidden state, if one was recorded by an assignment."""
    recorded = any(one.startswith("cache.hidden") for one in assignments)
    learned = any(one.startswith("interaction.hidden") for one in assignments)
    if name != "train-student" or not recorded or learned or "cache.hidden=null" in assignments:
        return []
    return ["interaction.hidden={}"]


def loading_code(folder: Path) -> str:
    """Return the line of Python that loads a finished model."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    from vlsi_cache.models import load_config

    sees = type(load_config(str(folder))) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    auto = "AutoModelForImageTextToText" if sees else "AutoModelForCausalLM"
    return f"transformers.{auto}.from_pretrained({json.dumps(str(folder), ensure_ascii=False)})"
