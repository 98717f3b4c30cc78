"""The exception tree: every failure that a user can mend.

An error is one line of text: where, what, expected, found, how to mend. One of several problems has
a line for each. The command line prints it and exits with ``exit_code``. Nothing below the command
line prints or exits.
"""

from __future__ import annotations

import copyreg
import unicodedata
from collections.abc import Sequence
from typing import Any, ClassVar, Final

__all__ = [
    "CacheAccessError",
    "CacheError",
    "CacheMismatchError",
    "DataError",
    "HubError",
    "ModelError",
    "RecipeError",
    "StageError",
    "SystemLimitError",
    "VlsiCacheError",
    "counted",
    "excerpt",
    "first_line",
    "printable",
]

_MOST_CHARACTERS: Final = 1000
"""Most characters of each part of an error. Names in a foreign file may be of any length."""


class VlsiCacheError(Exception):
    """A failure with a cause that the user can name and mend.

    Args:
        what: the problem, as a clause without a final full stop.
        where: the file, sample, recipe path or model with the problem.
        expected: the right value or state.
        found: the value or state in its place.
        mend: an imperative sentence that says how to mend it.
        problems: what is wrong in detail. One follows the problem in its line, and several have
            lines of their own.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        found: object = None,
        mend: str | None = None,
        problems: Sequence[str | VlsiCacheError] = (),
    ) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.expected = None if expected is None else str(expected)
        self.found = None if found is None else str(found)
        self.mend = mend
        self.problems = tuple(problems)
        super().__init__(self._sentence())

    def __reduce__(self) -> tuple[Any, ...]:
        """Send an error to another process whole: it is not made again from its sentence."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]

    def _sentence(self) -> str:
        what = _in_one_line(self.what)
        parts = [f"{_in_one_line(self.where)}: {what}" if self.where else what]
        if self.expected is not None:
            parts.append(f"expected {_in_one_line(self.expected)}")
        if self.found is not None:
            parts.append(f"found {_in_one_line(self.found)}")
        sentence = "; ".join(parts).rstrip(". ")
        mend = f"{_in_one_line(self.mend).rstrip('.')}." if self.mend else ""
        if len(self.problems) > 1:
            return "\n".join(filter(None, [f"{sentence}:", *map(_indented, self.problems), mend]))
        if self.problems:
            sentence = f"{sentence}: {_in_one_line(str(self.problems[0])).rstrip('. ')}"
        return f"{sentence}. {mend}" if mend else sentence


class RecipeError(VlsiCacheError):
    """The recipe or the flags contradict the schema, or each other."""

    exit_code = 2


class ModelError(VlsiCacheError):
    """A model or processor cannot be loaded, or the model cannot be bound as a decoder."""


class DataError(VlsiCacheError):
    """A dataset, conversation or image cannot be used."""


class CacheError(VlsiCacheError):
    """A cache folder is absent, incomplete or damaged."""


class CacheAccessError(CacheError):
    """A file or folder of a cache cannot be read, so nothing is known of what it holds."""


class CacheMismatchError(CacheError):
    """A cache was made for other data, another tokenizer or other settings."""


class StageError(VlsiCacheError):
    """A training stage or the teacher pass cannot go on."""


class HubError(VlsiCacheError):
    """The Hugging Face hub refuses an upload, or cannot be reached."""


class SystemLimitError(VlsiCacheError):
    """The system refuses a thread, a process, an open file or memory."""


def printable(text: str, most: int = _MOST_CHARACTERS) -> str:
    """Return a text that a terminal shows and never obeys.

    Control characters and those that turn the direction of writing appear as escapes. What is
    beyond ``most`` characters is cut.
    """
    shown = text[:most] if len(text) > most else text
    if not shown.isprintable():
        shown = "".join(c if _is_harmless(c) else _escape(c) for c in shown)
    return shown if len(text) <= most else f"{shown} …"


def _is_harmless(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"  # spaces


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _in_one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def _indented(problem: str | VlsiCacheError) -> str:
    """A problem as part of a list. An error keeps its own lines, and a text is one line."""
    is_error = isinstance(problem, VlsiCacheError)
    lines = str(problem).split("\n") if is_error else [_in_one_line(str(problem))]
    return "\n".join(f"  {line}" for line in lines)


def counted(count: int, noun: str) -> str:
    """Write a number with what it counts, such as ``1 sample`` and ``2,000 samples``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


_EXCERPT_CHARACTERS: Final = 60


def excerpt(text: str) -> str:
    """The beginning of a user's text, short enough for an error."""
    if len(text) <= _EXCERPT_CHARACTERS:
        return text
    return f"{text[:_EXCERPT_CHARACTERS]} …"


def first_line(error: Exception) -> str:
    """The first line of another library's error, or the name of its class if it has no text.

    A line that ends in a colon says nothing without the next one.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
