"""A turn's raw fields to what is said in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from vlsi_cache.data.conversation import ImagePart, Message, TextPart
from vlsi_cache.data.reading.context import RowContext, is_given
from vlsi_cache.data.reading.forms.media import validate_turn_media
from vlsi_cache.data.reading.forms.parts import Part, read_content
from vlsi_cache.data.reading.forms.tools import CALL_KEYS, called_tools, tool_calls
from vlsi_cache.data.reading.forms.weights import WEIGHT_KEYS, is_learned
from vlsi_cache.errors import DataError, excerpt

__all__ = ["KNOWN_FIELDS", "THOUGHT_FIELDS", "RawTurn", "Turn", "read_turn", "role_of"]

_ROLES: Final = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "claude": "assistant",
    "chatbot": "assistant",
    "ai": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "tool_result": "tool",
    "function_response": "tool",
    "ipython": "tool",
}
_CALLERS: Final = ("function_call", "tool_call")
"""Roles whose content is a call, as JSON."""
_ROLE_KEYS: Final = ("role", "from")
_CONTENT_KEYS: Final = ("content", "value")
_THOUGHT_KEYS: Final = ("reasoning_content", "reasoning", "thinking", "thought")
_THOUGHT_TEXTS: Final = ("thinking_content", "thoughts", "think", "cot", "chain_of_thought")
"""Keys that hold an answer's thought if they hold text, and none of the keys above does."""
THOUGHT_FIELDS: Final = frozenset((*_THOUGHT_KEYS, *_THOUGHT_TEXTS))
"""Names of a thought in a turn."""
_THOUGHT_BLOCKS: Final = ("thinking_blocks", "reasoning_details")
"""Lists of blocks, of LiteLLM and of OpenRouter, which stand beside a thought as text."""
_OPENS_THOUGHT: Final = "<think>"
_THOUGHT_PARTS: Final = ("thinking", "reasoning")
_NAME_KEYS: Final = ("name", "tool_call_id")
_ROW_KEYS: Final = ("tools", "functions", "chat_template_kwargs")
"""Fields of a row, which some sets write into its first turn."""
_INNER_CHANNELS: Final = ("analysis", "commentary")
_CALLED: Final = re.compile(r"functions\.|(?:browser|python)(?:[. ]|$)")
"""How recipients begin that are tools. Others are people and rooms."""
_PLAIN_KEYS: Final = {*_ROLE_KEYS, *_CONTENT_KEYS}
KNOWN_FIELDS: Final = frozenset(
    (*_ROLE_KEYS, *_CONTENT_KEYS, *_THOUGHT_KEYS, *WEIGHT_KEYS, *_NAME_KEYS, *CALL_KEYS)
).union(_THOUGHT_TEXTS)


@dataclass(frozen=True, slots=True)
class RawTurn:
    """A turn as a row holds it."""

    fields: Mapping[str, Any]
    """The turn's own fields."""
    path: str = "messages[]."
    """Name of the turn's fields, when they are reported."""
    learned: bool = True
    """Whether an assistant's turn is learned, if it does not say so itself."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn whose places for images may be open."""

    role: str
    """The role, in the words of `Message`."""
    parts: list[Part]
    """What is said, in the order in which it is read."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What else the template reads."""
    learned: bool = True
    """Whether an assistant's turn is learned."""

    def message(self) -> Message:
        """The turn, once every place has its image."""
        parts = tuple(part for part in self.parts if isinstance(part, TextPart | ImagePart))
        return Message(self.role, parts, self.fields, self.learned)


def role_of(name: object) -> str | None:
    """The role that a name of a turn means, in the words of `Message`."""
    return _ROLES.get(name.strip().lower()) if isinstance(name, str) else None


def read_turn(raw: RawTurn, context: RowContext) -> Turn:
    """Read one turn.

    Raises:
        DataError: a field of the turn is not sound.
    """
    turn = raw.fields
    name = _only(turn, _ROLE_KEYS, context)
    known = name.strip().lower() if isinstance(name, str) else ""
    role = role_of(name)
    if role is None:
        raise _unknown_role(name, turn, context)
    content = _only(turn, _CONTENT_KEYS, context)
    if turn.keys() <= _PLAIN_KEYS and isinstance(content, str) and known not in _CALLERS:
        return Turn(role, [TextPart(content)], learned=raw.learned or role != "assistant")
    validate_turn_media(turn, role, context)
    _validate_no_row_fields(turn, role, context)
    _validate_channel(turn, role, context)
    thoughts = _thought_keys(turn, role)
    context.note_unread(turn, (KNOWN_FIELDS - {*_THOUGHT_TEXTS}) | {*thoughts}, raw.path)
    calls = tool_calls(turn, raw.path, context)
    if known in _CALLERS:
        calls += called_tools(content, f"{name}'s turn", context)
        content = None
    thought, content = _thought(turn, thoughts, content, context)
    _validate_answering(role, calls, thought, context)
    if role == "assistant":
        _validate_unsaid(turn, thought, content, context)
    fields = {"reasoning_content": thought, "tool_calls": calls, **_names(turn, context)}
    given = {key: value for key, value in fields.items() if value}
    parts = _read_parts(content, role, raw, context)
    if calls and all(part == TextPart("") for part in parts):
        parts = []
    return Turn(role, parts, given, is_learned(turn, role, context, default=raw.learned))


def _unknown_role(name: object, turn: Mapping[str, Any], context: RowContext) -> DataError:
    if name is None:
        return context.error(
            "unknown role",
            expected="role and content, or from and value",
            found="None, beside the keys " + (", ".join(map(str, turn)) or "none"),
        )
    return context.error(
        "unknown role",
        expected="one of " + ", ".join(_ROLES),
        found=excerpt(repr(name)),
        mend="Rename the role, or drop the turn",
    )


def _read_parts(content: object, role: str, raw: RawTurn, context: RowContext) -> list[Part]:
    parts = read_content(content, role, f"{raw.path}content", context)
    if parts is None and not (content is None and role == "assistant"):
        raise context.error(
            f"content of the {role}'s turn is neither text nor a list of parts",
            found=excerpt(repr(content))
            if content is not None
            else "None, beside the keys " + ", ".join(map(str, raw.fields)),
            mend=None
            if content is None
            else "Write it as text"
            if not isinstance(content, Mapping)
            else "Write it as JSON text",
        )
    return parts or []


def _only(turn: Mapping[str, Any], keys: Iterable[str], context: RowContext) -> object:
    """The value of the one key that holds something. Two may hold the same."""
    found: str | None = None
    for key in keys:
        value = turn.get(key)
        if value is None:
            continue
        if found is None or not is_given(turn[found]):
            found = key
        elif is_given(value) and not _is_same(value, turn[found]):
            raise context.error(
                f"a turn holds both {found} and {key}, and they differ", mend="Keep one of them"
            )
    return None if found is None else turn[found]


def _is_same(value: object, other: object) -> bool:
    """Whether two values are equal, or two names of one role."""
    role = _ROLES.get(str(value))
    return value == other or (role is not None and role == _ROLES.get(str(other)))


def _thought_keys(turn: Mapping[str, Any], role: str) -> tuple[str, ...]:
    """The keys under which a turn's thought is sought."""
    has_own = any(is_given(turn.get(key)) for key in _THOUGHT_KEYS)
    texts = _THOUGHT_TEXTS if role == "assistant" and not has_own else ()
    return (*_THOUGHT_KEYS, *(key for key in texts if isinstance(turn.get(key), str)))


def _thought(
    turn: Mapping[str, Any], keys: Sequence[str], content: object, context: RowContext
) -> tuple[str | None, object]:
    """The turn's thought, from its own field or from parts of the content, and the other parts."""
    thought = _only(turn, keys, context) or None
    if isinstance(content, list):
        kinds = [part.get("type") if isinstance(part, Mapping) else None for part in content]
        count = sum(kind in _THOUGHT_PARTS for kind in kinds)
        if count and (thought or not all(kind in _THOUGHT_PARTS for kind in kinds[:count])):
            raise context.error("a thought does not stand before the answer, or stands twice")
        pieces = [part.get(part["type"]) or part.get("text") for part in content[:count]]
        if count and all(isinstance(piece, str) for piece in pieces):
            thought = "".join(pieces)
        elif count:
            thought = pieces
        content = content[count:]
    if thought is not None and not isinstance(thought, str):
        raise context.error("thought of a turn is not text", found=excerpt(repr(thought)))
    return thought, content


def _validate_channel(turn: Mapping[str, Any], role: str, context: RowContext) -> None:
    """Refuse turns of gpt-oss's own form, in which thoughts and calls look like answers."""
    if role != "assistant":
        return
    inner = {
        "channel": str(turn.get("channel")).partition(" ")[0] in _INNER_CHANNELS,
        "recipient": _CALLED.match(str(turn.get("recipient"))),
    }
    for key in inner:
        if inner[key]:
            raise context.error(
                f"the assistant's turn has {key}, which is not read",
                found=excerpt(repr(turn[key])),
                mend="Write thoughts into reasoning_content of the answer, and calls into "
                "tool_calls",
            )


def _validate_unsaid(
    turn: Mapping[str, Any], thought: str | None, content: object, context: RowContext
) -> None:
    """Refuse an answer that has words where nothing reads them, or a thought in two places."""
    opens = isinstance(content, str) and content.lstrip().startswith(_OPENS_THOUGHT)
    if opens and thought:
        raise context.error(
            f"a thought stands in the content, after {_OPENS_THOUGHT}, and another beside it",
            mend="Keep one of them",
        )
    unread = {key: "reasoning_content" for key in _THOUGHT_BLOCKS if not (opens or thought)}
    unread |= {} if is_given(content) else {"refusal": "content"}
    for key, place in unread.items():
        if is_given(turn.get(key)):
            raise context.error(
                f"the assistant's turn has {key}, which is not read",
                found=excerpt(repr(turn[key])),
                mend=f"Write its text into {place}",
            )


def _validate_no_row_fields(turn: Mapping[str, Any], role: str, context: RowContext) -> None:
    for key in _ROW_KEYS:
        if is_given(turn.get(key)):
            raise context.error(
                f"the {role}'s turn has {key}, which is read beside the turns",
                mend=f"Move it into the row's own {key}",
            )


def _validate_answering(role: str, calls: object, thought: object, context: RowContext) -> None:
    given = "a call of a tool" if calls else "a thought" if thought else None
    if given is not None and role != "assistant":
        raise context.error(
            f"the {role}'s turn holds {given}", expected="it in an assistant's turn"
        )


def _names(turn: Mapping[str, Any], context: RowContext) -> dict[str, str]:
    names: dict[str, str] = {}
    for key in _NAME_KEYS:
        if key not in turn:
            continue
        value = turn[key]
        if not isinstance(value, str | int | None) or isinstance(value, bool):
            raise context.error(f"{key} of a turn is not text", found=excerpt(repr(value)))
        names |= {key: str(value)} if is_given(value) else {}
    return names
