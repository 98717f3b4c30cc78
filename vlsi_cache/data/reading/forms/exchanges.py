"""Conversations whose entries hold a question and its answer, in place of one turn each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from vlsi_cache.data.reading.context import is_given
from vlsi_cache.data.reading.forms.tools import CALL_KEYS
from vlsi_cache.data.reading.forms.turns import THOUGHT_FIELDS, RawTurn
from vlsi_cache.data.reading.forms.weights import MARKS

__all__ = ["turns_of_exchanges"]

_PAIRS: Final = (
    ("input", "output"),
    ("human", "assistant"),
    ("human", "gpt"),
    ("user", "assistant"),
    ("user", "bot"),
    ("question", "answer"),
    ("query", "response"),
    ("prompt", "response"),
)
"""Names of a question and its answer: Capybara's and XTuner's, Firefly's, Phi's, …"""
_LEARNED: Final = "output_with_loss"
"""XTuner's mark of what is learned."""
_TURN_KEYS: Final = ("role", "from")


def turns_of_exchanges(entries: Sequence[Mapping[str, Any]], name: str) -> list[RawTurn] | None:
    """Return the turns of a conversation, or None if its entries are not exchanges.

    Args:
        entries: what the conversation's column holds.
        name: name of the column.
    """
    if any(is_given(entry.get(key)) for entry in entries for key in _TURN_KEYS):
        return None
    for question, answer in _PAIRS:
        if all(question in entry and isinstance(entry.get(answer), str) for entry in entries):
            return [
                turn for entry in entries for turn in _turns(entry, question, answer, f"{name}[].")
            ]
    return None


def _turns(entry: Mapping[str, Any], question: str, answer: str, path: str) -> Iterator[RawTurn]:
    """The turns of one exchange. Other fields go to the turn that reads or refuses them."""
    rest = {key: value for key, value in entry.items() if key not in (question, answer, "system")}
    learned = {"weight": rest.pop(_LEARNED)} if is_given(rest.get(_LEARNED)) else {}
    names = {*THOUGHT_FIELDS, *MARKS, *CALL_KEYS}
    own = {key: rest.pop(key) for key in names & rest.keys()}
    if is_given(entry.get("system")):
        yield RawTurn({"role": "system", "content": entry["system"]}, path)
    if is_given(entry[question]) or rest:
        yield RawTurn({"role": "user", "content": entry[question], **rest}, path)
    yield RawTurn({"role": "assistant", "content": entry[answer], **learned, **own}, path)
