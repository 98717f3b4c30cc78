"""One side of a conversation, as a text, a message or a list of messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlsi_cache.data.reading.context import RowContext
from vlsi_cache.data.reading.forms.turns import RawTurn
from vlsi_cache.errors import excerpt

__all__ = [
    "TURN_COLUMNS",
    "is_list_text",
    "is_turn",
    "is_turns",
    "said",
    "side_of",
    "text_of",
    "turns_of",
    "unlearned",
]

TURN_COLUMNS = ("messages", "conversations", "conversation", "dialog", "dialogue")
"""Columns that hold the turns of a whole conversation."""


def is_turn(value: object) -> bool:
    """Whether a value is one turn, with a role."""
    return isinstance(value, Mapping) and any(
        isinstance(value.get(key), str) for key in ("role", "from")
    )


def side_of(role: str, value: object, name: str, context: RowContext) -> list[RawTurn]:
    """The turns of one side: a text, a message, or a list of messages."""
    if isinstance(value, Mapping) and is_turn(value):
        return [RawTurn(value, f"{name}.")]
    if is_turns(value):
        return [RawTurn(turn, f"{name}[].") for turn in turns_of(value, name, context)]
    return [said(role, value, name, context)]


def unlearned(turns: Sequence[RawTurn]) -> list[RawTurn]:
    """The turns of a prompt. They are given, and not learned."""
    return [RawTurn(turn.fields, turn.path, learned=False) for turn in turns]


def said(role: str, text: object, name: str, context: RowContext) -> RawTurn:
    """A turn that says a text."""
    return RawTurn({"role": role, "content": text_of(text, name, context)})


def text_of(value: object, name: str, context: RowContext) -> str:
    """The text of a field.

    Raises:
        DataError: it holds something else.
    """
    if not isinstance(value, str):
        raise context.error(f"{name} is not text", found=excerpt(repr(value)))
    return value


def is_turns(value: object) -> bool:
    """Whether a value holds turns: a list of them, perhaps as JSON, or one alone."""
    return isinstance(value, list | Mapping) or is_list_text(value)


def is_list_text(value: object) -> bool:
    """Whether a text may be a list of turns as JSON."""
    return isinstance(value, str) and value.lstrip().startswith('[{"')


def _is_object_text(value: object) -> bool:
    """Whether a text may be a turn as JSON."""
    return isinstance(value, str) and value.lstrip().startswith('{"')


def turns_of(value: object, name: str, context: RowContext) -> Sequence[Mapping[str, Any]]:
    """The turns in a field: a list of them or its JSON text, each an object or its JSON text.

    Raises:
        DataError: it holds something else, or no turn.
    """
    turns = context.decoded(value, name) if is_list_text(value) else value
    turns = _transposed(turns) if isinstance(turns, Mapping) else turns
    if isinstance(turns, list) and turns and all(map(_is_object_text, turns)):
        turns = [context.decoded(turn, f"{name}[]") for turn in turns]
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise context.error(
            f"{name} is not a list of turns",
            expected=("" if name in TURN_COLUMNS else "text, or ")
            + '[{"role": …, "content": …}, …]',
            found=excerpt(repr(turns)),
        )
    if not turns:
        raise context.error(f"{name} is empty", mend="Drop the sample")
    return turns


def _transposed(columns: Mapping[str, Any]) -> object:
    """The list of turns behind the lists of their fields, as `datasets` stored it once."""
    lists = [values for values in columns.values() if isinstance(values, list)]
    if len(lists) != len(columns) or len({len(values) for values in lists}) != 1:
        return columns
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]
