"""Small conversations that templates are tried with, and the forms in which they take calls."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["CALL_FORMS", "NO_CONTENT", "PROBE", "TOOL", "CallForm", "opening_turn", "probe_turns"]

PROBE: Final = {"user": "Which hue", "assistant": "Vermilion", "thought": "Umbrage"}
"""Words that no template writes by itself."""

NO_CONTENT: Final = object()
"""Stands for a turn without the key ``content``."""

_NAME = "find_hue"
TOOL: Final[dict[str, Any]] = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "Find a hue.",
        "parameters": {
            "type": "object",
            "properties": {"hue": {"type": "string", "description": "Its name."}},
            "required": ["hue"],
        },
    },
}
"""Schema of the tool that probes call."""

_CALL: Final[dict[str, Any]] = {
    "id": "a1b2c3d4e",  # Mistral's templates want nine letters or digits
    "type": "function",
    "function": {"name": _NAME, "arguments": {"hue": PROBE["assistant"]}},
}


@dataclass(frozen=True, slots=True)
class CallForm:
    """A form in which a template takes calls of tools."""

    as_json: bool
    """Whether it takes the arguments as JSON text. Otherwise as an object."""
    content: Any
    """What it wants as ``content`` of a turn that only calls: an empty text, nothing or None."""

    def call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """One of a turn's ``tool_calls`` in this form."""
        function = call.get("function")
        if not self.as_json or not isinstance(function, Mapping) or "arguments" not in function:
            return dict(call)
        arguments = json.dumps(function["arguments"], ensure_ascii=False)
        return {**call, "function": {**function, "arguments": arguments}}

    def probe(self) -> dict[str, Any]:
        """An assistant's turn that calls a tool."""
        turn = {"role": "assistant", "content": self.content, "tool_calls": [self.call(_CALL)]}
        if self.content is NO_CONTENT:
            del turn["content"]
        return turn

    def is_written_in(self, text: str) -> bool:
        """Whether a template's text holds the probe's call as the model would write it."""
        answer = text.rpartition(PROBE["user"])[2]
        value = PROBE["assistant"]
        # Python's own spelling of an object, JSON inside JSON, or None in place of a text.
        slips = ("{'", f'\\"{value}', "None")
        return _NAME in answer and value in answer and not any(slip in answer for slip in slips)


CALL_FORMS: Final = tuple(
    CallForm(as_json, content) for as_json in (False, True) for content in ("", NO_CONTENT, None)
)


def opening_turn(*, parts: bool) -> list[dict[str, Any]]:
    """A system turn, before the first question.

    Args:
        parts: write its content as a list of parts rather than a string.
    """
    return [{"role": "system", "content": [{"type": "text", "text": "S"}] if parts else "S"}]


def probe_turns(*, parts: bool) -> list[dict[str, Any]]:
    """A question and its answer.

    Args:
        parts: write contents as lists of parts rather than strings.
    """
    return [
        {"role": role, "content": [{"type": "text", "text": PROBE[role]}] if parts else PROBE[role]}
        for role in ("user", "assistant")
    ]
