"""The command or the line of Python that comes after a command, with the user's own paths."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

__all__ = ["Given", "loading_code", "next_command", "remember_given"]

_META: Final = "vlsi_cache.given"
_SHARED: Final = {
    "data.path": "--data",
    "data.split": "--split",
    "data.limit": "--limit",
    "output": "--output",
    "cache.path": "--cache",
    "data.on_error": "--on-error",
    "cache.on_error": "--on-error",
    "device": "--device",
    "seed": "--seed",
}
"""Recipe key → its flag, where all commands of a run need the same."""
_OWN: Final = {
    "student.model": "--student",
    "student.taps": "--taps",
    "student.dtype": "--dtype",
    "interaction.follow": "--follow",
    "interaction.follow_timeout_seconds": "--follow-timeout",
    "student.verbalization.steps": "--verbalization-steps",
    "interaction.steps": "--interaction-steps",
    "finetuning.steps": "--finetuning-steps",
}
"""The same for the flags of ``train-student`` alone."""
_TEACHERS: Final = {
    "teacher.model": "--teacher",
    "teacher.taps": "--taps",
    "teacher.dtype": "--dtype",
    "cache.batch_size": "--batch-size",
    "cache.batch_tokens": "--batch-tokens",
}
"""The same for the flags of ``dump-teacher`` alone."""
_OTHERS: Final = {
    "train-student": (
        *("teacher.", "cache.k=", "cache.m=", "cache.drawn_from="),
        *("cache.samples_per_shard=", "cache.batch_size=", "cache.batch_tokens="),
        *("cache.workers=", "cache.hidden"),
    ),
}
"""Beginnings of the assignments that a command does not read."""
_BOTH: Final = {
    "teacher.model": "--teacher",
    "student.model": "--student",
    "data.max_length": "--max-length",
}
"""The same for the commands that read both models."""
_ASSIGNED: Final = ("data.max_length",)
"""Keys of a run that are assigned where a command has no flag for them."""


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


def next_command(name: str, more: Mapping[str, str]) -> str:
    """Return the command line that goes on from this command.

    Args:
        name: the next command.
        more: flags that it needs besides.
    """
    given: Given = click.get_current_context().meta[_META]
    words = ["vlsi-cache", name]
    if given.recipe is not None:
        words += ["--recipe", str(given.recipe)]
    others = _OTHERS.get(name, ())
    for assignment in given.assignments:
        if not assignment.startswith(others):
            words += ["--set", assignment]
    words += _learning_hidden(name, given.assignments)
    for flag, value in more.items():
        words += [flag, value]
    own = {"dump-teacher": _TEACHERS, "plan": _BOTH, "check": _BOTH}.get(name, _OWN)
    flags = _SHARED | own
    for key in _ASSIGNED:
        if key not in flags and given.flags.get(key) is not None:
            words += ["--set", f"{key}={given.flags[key]}"]
    for key, flag in flags.items():
        found = given.flags.get(key)
        if found is True:
            words.append(flag)
        elif found is not None:
            words += [flag, ",".join(map(str, found)) if isinstance(found, list) else str(found)]
    return shlex.join(words)


def _learning_hidden(name: str, assignments: Sequence[str]) -> list[str]:
    """Return the assignment that learns a hidden state, if one was recorded by an assignment."""
    recorded = any(one.startswith("cache.hidden") for one in assignments)
    learned = any(one.startswith("interaction.hidden") for one in assignments)
    if name != "train-student" or not recorded or learned or "cache.hidden=null" in assignments:
        return []
    return ["--set", "interaction.hidden={}"]


def loading_code(folder: Path) -> str:
    """Return the line of Python that loads a finished model."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    from vlsi_cache.models import load_config

    sees = type(load_config(str(folder))) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    auto = "AutoModelForImageTextToText" if sees else "AutoModelForCausalLM"
    return f'transformers.{auto}.from_pretrained("{folder}")'
