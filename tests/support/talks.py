"""Conversations for templates of all families, and what is learned of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from support.familytokenizers import family_tokenizer
from vlsi_cache.data import BatchEncoder, Conversation, Message, TextPart

__all__ = [
    "ARGUMENTS",
    "CALL",
    "CALLS",
    "INLINE",
    "PLAIN",
    "TEXT_AND_CALLS",
    "THOUGHTS",
    "TOOL",
    "conversation",
    "learned",
    "learned_with",
    "text_of",
    "turn",
]

CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "get_hue", "arguments": {"n": 5, "where": 'a "b"'}},
}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_hue",
        "description": "Gets.",
        "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}},
    },
}
ARGUMENTS = '{"n": 5, "where": "a \\"b\\""}'


def turn(role: str, text: str = "", *, learned: bool = True, **fields: Any) -> Message:
    """A message of one text, or of none."""
    return Message(role, (TextPart(text),) if text else (), fields, learned)


def conversation(*messages: Message, tools: Sequence[Any] = (), **variables: Any) -> Conversation:
    """A sample of these messages."""
    return Conversation("sample", messages, "talk:1", tuple(tools), variables)


PLAIN = conversation(
    turn("user", "What?"),
    turn("assistant", "It is red."),
    turn("user", "Which?"),
    turn("assistant", "4 blue"),
)
THOUGHTS = conversation(
    turn("user", "What?"),
    turn("assistant", "red", reasoning_content="Hm."),
    turn("user", "Which?"),
    turn("assistant", "4 blue", reasoning_content="So."),
)
INLINE = conversation(
    turn("user", "What?"),
    turn("assistant", "<think>\nHm.\n</think>\n\nred"),
    turn("user", "Which?"),
    turn("assistant", "<think>\nSo.\n</think>\n\n4 blue"),
)
CALLS = conversation(
    turn("user", "What?"),
    turn("assistant", tool_calls=[CALL]),
    turn("tool", "red", tool_call_id="abcdefghi"),
    turn("assistant", "4 blue"),
    tools=[TOOL],
)
TEXT_AND_CALLS = conversation(
    turn("user", "What?"),
    turn("assistant", "Wait.", tool_calls=[CALL]),
    turn("tool", "red", tool_call_id="abcdefghi"),
    turn("assistant", "4 blue"),
    tools=[TOOL],
)


def learned(kind: str, sample: Conversation) -> list[str]:
    """The text of each run of learned tokens."""
    return learned_with(family_tokenizer(kind), sample)


def learned_with(tokenizer: Any, sample: Conversation) -> list[str]:
    """The text of each run of learned tokens."""
    batch = BatchEncoder(tokenizer, max_length=None)([sample])
    pairs = zip(batch["input_ids"][0].tolist(), batch["response_mask"][0].tolist(), strict=True)
    runs = groupby(pairs, key=lambda pair: pair[1])
    return [tokenizer.decode([token for token, _ in run]) for inside, run in runs if inside]


def text_of(tokenizer: Any, sample: Conversation) -> str:
    """All that the model reads of a sample."""
    ids = BatchEncoder(tokenizer, max_length=None)([sample])["input_ids"][0]
    return str(tokenizer.decode(ids.tolist()))
