"""Random conversations: what is learned is what generation would have to produce."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.familytokenizers import FAMILY_TOKENIZERS, family_tokenizer
from support.talks import (
    CALL,
    TOOL,
    conversation,
    learned,
    turn,
)
from vlsi_cache.data import BatchEncoder, Conversation
from vlsi_cache.errors import DataError

CALLING = frozenset(
    {"qwen3", "qwen3-thinking", "qwq", "glm4.5", "command-r7b", "llama3.1", "mistral", "gpt-oss"}
)
"""Families whose templates write calls of tools."""
THINKING = frozenset({"qwen3", "qwen3-thinking", "glm4.5", "gpt-oss"})
"""Families whose templates write thoughts."""

words = st.text(alphabet="abz 1.é中'\"\\{}\n", min_size=1, max_size=9).filter(str.strip)
answers = st.fixed_dictionaries(
    {"text": words, "learned": st.booleans(), "calls": st.booleans(), "thinks": st.booleans()}
)


@settings(max_examples=40)
@given(st.lists(st.tuples(words, answers), min_size=1, max_size=3), words)
@pytest.mark.parametrize("kind", FAMILY_TOKENIZERS)
def test_what_is_learned_is_what_generation_would_have_to_produce(
    kind: str, turns: list[tuple[str, dict[str, Any]]], argument: str
) -> None:
    sample = _random(kind, turns, argument)
    tokenizer: Any = family_tokenizer(kind)
    if not any(message.learned for message in sample.messages if message.role == "assistant"):
        with pytest.raises(DataError, match="no token of the sample is learned"):
            learned(kind, sample)
        return
    encoder = BatchEncoder(tokenizer, max_length=None)
    batch = encoder([sample])
    ids, mask = batch["input_ids"][0].tolist(), batch["response_mask"][0].tolist()
    last = max(index for index, inside in enumerate(mask) if inside)
    first = last
    while mask[first - 1]:
        first -= 1
    # The last answer is learned after the very text that the model gets as its prompt, and what is
    # learned is all that follows up to the stop.
    history = sample.messages
    end = max(index for index, one in enumerate(history) if one.role == "assistant" and one.learned)
    prompt = encoder._template.render(
        Conversation("p", history[:end], "p", sample.tools),
        where="p",
        add_generation_prompt=True,
    )[0]
    whole = encoder._template.render(
        Conversation("w", history[: end + 1], "w", sample.tools), where="w"
    )[0]
    rest = whole[len(_agreed(prompt, whole)) :]
    if kind == "glm4.5" and end + 1 < len(history):  # the next role stops the turn
        rest += {"user": "<|user|>", "tool": "<|observation|>"}[history[end + 1].role]
    produced = tokenizer.decode(ids[first : last + 1])
    assert _spaceless(produced) in _spaceless(rest)
    assert _spaceless(rest).startswith(_spaceless(produced))
    leftover = _spaceless(rest).removeprefix(_spaceless(produced))
    assert leftover in {"", "<|endoftext|>"}


def _random(kind: str, turns: list[tuple[str, dict[str, Any]]], argument: str) -> Conversation:
    call = copy.deepcopy(CALL)
    call["function"]["arguments"] = {"n": 5, "where": argument}  # type: ignore[index]
    messages = []
    for question, answer in turns:
        messages.append(turn("user", question))
        fields = {}
        if answer["calls"] and kind in CALLING:
            messages.append(turn("assistant", tool_calls=[call], learned=answer["learned"]))
            messages.append(turn("tool", "red", tool_call_id="abcdefghi"))
        if answer["thinks"] and kind in THINKING:
            fields["reasoning_content"] = "So it is."
        messages.append(turn("assistant", answer["text"], learned=answer["learned"], **fields))
    return conversation(*messages, tools=[TOOL] if kind in CALLING else [])


def _agreed(prompt: str, whole: str) -> str:
    """The prompt, as far as the text has it: whole tags and words."""
    if whole.startswith(prompt):
        return prompt
    length = 0
    while length < min(len(prompt), len(whole)) and prompt[length] == whole[length]:
        length += 1
    while length and (prompt[length - 1] == "<" or prompt[length - 1 : length + 1].isalnum()):
        length -= 1
    return whole[:length]


def _spaceless(text: str) -> str:
    return "".join(text.split())
