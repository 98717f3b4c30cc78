"""Rows whose answer, prompt or thought stands in another place than most sets have it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vlsi_cache.data import Conversation, load_conversations
from vlsi_cache.errors import DataError

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
HUMAN = {"from": "human", "value": "q"}
GPT = {"from": "gpt", "value": "a"}
GIVEN = [("user", "q", True), ("assistant", "a", True)]
SCHEMA = {"name": "w", "parameters": {"type": "object", "properties": {}}}


def _read(row: Any, write_rows: Any) -> Conversation:
    (sample,) = load_conversations(write_rows([row]))
    return sample


def _said(sample: Conversation) -> list[tuple[str, str, bool]]:
    return [(message.role, message.text, message.learned) for message in sample.messages]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "chosen": "a", "rejected": "b"},
        {"instruction": "q", "chosen": "a", "rejected": "b"},
        {"input": "q", "chosen": [ANSWER], "rejected": []},
        {"prompt": "q", "chosen": ANSWER, "rejected": ANSWER},
        {"prompt": USER, "completion": ANSWER},
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "a"},
        },
        {"prompt": [{"from": "human", "value": "q"}], "chosen": [{"from": "gpt", "value": "a"}]},
        {"messages": [USER], "chosen": [USER, ANSWER]},
        {"messages": [json.dumps(USER), json.dumps(ANSWER)]},
        {"messages": [{"role": "user", "content": {"type": "text", "text": "q"}}, ANSWER]},
    ],
)
def test_prompts_and_chosen_answers_of_preference_sets_are_read(row: Any, write_rows: Any) -> None:
    assert _said(_read(row, write_rows)) == GIVEN


def test_an_input_beside_a_preferred_instruction_follows_it(write_rows: Any) -> None:
    dataset = load_conversations(
        write_rows([{"instruction": "q", "input": "x", "chosen": "a", "rejected": "b"}])
    )
    assert _said(dataset[0]) == [("user", "q\nx", True), ("assistant", "a", True)]
    assert dataset.columns_not_read() == ["rejected"]


def test_answers_before_a_chosen_one_are_given(write_rows: Any) -> None:
    sample = _read({"messages": [USER, ANSWER, USER], "chosen": ANSWER}, write_rows)
    assert [learned for _, _, learned in _said(sample)] == [True, False, True, True]


@pytest.mark.parametrize("key", ["response", "completion", "answer", "output"])
def test_an_answer_beside_a_conversation_that_ends_with_a_question_is_refused(
    key: str, write_rows: Any
) -> None:
    row = {"messages": [USER, ANSWER, USER], key: "late"}
    with pytest.raises(DataError, match=f"messages ends with a question, and {key} stands beside"):
        _read(row, write_rows)
    assert _said(_read({"messages": [USER, ANSWER], key: "late"}, write_rows)) == GIVEN


def test_a_bad_answer_by_its_tag_is_refused(write_rows: Any) -> None:
    row = {"instruction": "q", "output": "a", "kto_tag": False}
    with pytest.raises(DataError, match="kto_tag is False"):
        _read(row, write_rows)
    assert _said(_read({**row, "kto_tag": True}, write_rows)) == GIVEN


def test_calls_that_answer_a_query_are_learned(write_rows: Any) -> None:
    calls = [{"name": "w", "arguments": {"city": "Bern"}}]
    row = {"query": "q", "tools": json.dumps([SCHEMA]), "answers": json.dumps(calls)}
    sample = _read(row, write_rows)
    assert [message.role for message in sample.messages] == ["user", "assistant"]
    assert sample.messages[1].fields["tool_calls"] == [{"type": "function", "function": calls[0]}]


def test_what_was_encoded_once_more_is_decoded_once_more(write_rows: Any) -> None:
    twice = json.dumps(json.dumps({"city": "Bern"}))
    call = {"type": "function", "function": {"name": "w", "arguments": twice}}
    tool = {"type": "function", "function": json.dumps(SCHEMA)}
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    sample = _read({"messages": [USER, turn], "tools": [tool]}, write_rows)
    assert sample.messages[1].fields["tool_calls"][0]["function"]["arguments"] == {"city": "Bern"}
    assert sample.tools[0]["function"] == SCHEMA


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"reasoning_details": [{"text": "Hm."}]}, "has reasoning_details, which is not read"),
        ({"thinking_blocks": [{"thinking": "Hm."}]}, "has thinking_blocks, which is not read"),
        ({"content": None, "refusal": "No."}, "has refusal, which is not read; found 'No.'"),
        ({"content": "<think>x</think>a", "reasoning_content": "y"}, "and another beside it"),
    ],
)
def test_words_of_an_answer_that_nothing_reads_are_refused(
    fields: Any, problem: str, write_rows: Any
) -> None:
    with pytest.raises(DataError, match=problem):
        _read({"messages": [USER, {**ANSWER, **fields}]}, write_rows)


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_details": [{"text": "Hm."}], "reasoning": "Hm."},
        {"thinking_blocks": [{"thinking": "x"}], "content": "<think>x</think>a"},
        {"refusal": "No.", "content": "No."},
    ],
)
def test_blocks_beside_the_same_words_as_text_are_no_reason_to_refuse(
    fields: Any, write_rows: Any
) -> None:
    assert _read({"messages": [USER, {**ANSWER, **fields}]}, write_rows).messages[1].learned
