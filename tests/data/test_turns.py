"""Tools, thoughts, weights and variables of a row arrive whole, or the row is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from vlsi_cache.data import Conversation, load_conversations, load_data
from vlsi_cache.errors import DataError, RecipeError
from vlsi_cache.recipe import DataSection

ARGUMENTS = {"city": "Bern", "unit": None, "days": [1, 2]}
CALL = {"type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
QUESTION = {"role": "user", "content": "Weather?"}
ANSWER = {"role": "assistant", "content": "Sun."}


def calling(**turn: Any) -> dict[str, Any]:
    """A row whose assistant calls a tool, sees what it says, and answers."""
    return {
        "messages": [
            QUESTION,
            {"role": "assistant", **turn},
            {"role": "tool", "content": "sun", "name": "weather", "tool_call_id": "c1"},
            ANSWER,
        ]
    }


def read(row: Any, write_rows: Any) -> Conversation:
    dataset = load_conversations(write_rows([row]))
    dataset.validate()
    assert dataset.columns_not_read() == []
    return dataset[0]


@pytest.mark.parametrize(
    "turn",
    [
        {"content": None, "tool_calls": [CALL]},
        {"content": "", "tool_calls": [CALL]},
        {"tool_calls": [CALL]},
        {"tool_calls": json.dumps([CALL])},
        {"tool_calls": [json.dumps(CALL)]},
        {"tool_calls": CALL},
        {"tool_calls": [{"function": CALL["function"]}]},
        {"tool_calls": [CALL["function"]]},
        {"tool_calls": [{"function": {"name": "weather", "arguments": json.dumps(ARGUMENTS)}}]},
        {"tool_calls": None, "function_call": CALL["function"]},
        {"function_call": {"name": "weather", "arguments": json.dumps(ARGUMENTS)}},
        {"role": "function_call", "content": json.dumps(CALL["function"])},
        {"role": "tool_call", "content": CALL["function"]},
        {"tool_call": CALL},
        {"function_calls": [CALL]},
        {"toolCalls": json.dumps([CALL])},
        {"tool_calls": [{"name": "weather", "parameters": ARGUMENTS}]},
        {"tool_calls": [{"name": "weather", "input": ARGUMENTS, "arguments": None}]},
        {"tool_calls": [{"type": "tool_call", "name": "weather", "args": ARGUMENTS}]},
        {"tool_calls": [{"type": "tool_use", "name": "weather", "input": ARGUMENTS}]},
        {"tool_calls": [{"type": "function_call", **CALL["function"]}]},
        {"tool_calls": [{"name": "weather", "args": ARGUMENTS}]},
        {"tool_calls": [{"function": {"name": "weather", "parameters": json.dumps(ARGUMENTS)}}]},
        {"tool_calls": [{"function": {"name": "weather"}, "arguments": ARGUMENTS}]},
        {"tool_calls": [{**CALL, "arguments": json.dumps(ARGUMENTS)}]},
    ],
)
def test_calls_of_tools_have_one_shape(turn: Any, write_rows: Any) -> None:
    conversation = read(calling(**turn), write_rows)
    assert [message.role for message in conversation.messages] == [
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    called = conversation.messages[1]
    assert (called.parts, dict(called.fields)) == ((), {"tool_calls": [CALL]})
    assert dict(conversation.messages[2].fields) == {"name": "weather", "tool_call_id": "c1"}


@pytest.mark.parametrize("arguments", [{}, "{}", "", ARGUMENTS, json.dumps(ARGUMENTS)])
@pytest.mark.parametrize(
    "other", [{"parameters": {"type": "object"}}, {"input": "Bern, please"}, {"args": {"x": 1}}]
)
@pytest.mark.parametrize("is_wrapped", [True, False])
def test_arguments_go_alone_before_their_other_names(
    arguments: Any, other: Any, is_wrapped: bool, write_rows: Any
) -> None:
    call: dict[str, Any] = {"name": "weather", "arguments": arguments, **other}
    row = calling(tool_calls=[{"function": call} if is_wrapped else call])
    dataset = load_conversations(write_rows([row]))
    (called,) = dataset[0].messages[1].fields["tool_calls"]
    assert called["function"]["arguments"] == (ARGUMENTS if len(arguments) > 2 else {})
    place = "tool_calls[].function" if is_wrapped else "tool_calls[]"
    assert dataset.columns_not_read() == [f"messages[].{place}.{next(iter(other))}"]


def test_a_call_beside_text_keeps_both_and_its_id(write_rows: Any) -> None:
    row = calling(content="I look.", tool_calls=[{"id": "c1", **CALL}])
    called = read(row, write_rows).messages[1]
    assert called.text == "I look."
    assert called.fields["tool_calls"] == [{"id": "c1", **CALL}]
    without = load_conversations(write_rows([calling(content="I look.")], "b.jsonl"))[0]
    assert read(row, write_rows).key() != without.key()


def test_sharegpt_calls_and_observations_are_read(write_rows: Any) -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "Weather?"},
            {"from": "function_call", "value": json.dumps(CALL["function"])},
            {"from": "observation", "value": "sun"},
            {"from": "gpt", "value": "Sun."},
        ],
        "tools": json.dumps([TOOL["function"]]),
    }
    conversation = read(row, write_rows)
    assert [message.role for message in conversation.messages][1:3] == ["assistant", "tool"]
    assert conversation.messages[1].fields["tool_calls"] == [CALL]
    assert conversation.tools == (TOOL,)


@pytest.mark.parametrize(
    "columns",
    [
        {"tools": [TOOL]},
        {"tools": json.dumps([TOOL])},
        {"tools": [json.dumps(TOOL)]},
        {"tools": TOOL},
        {"tools": [TOOL["function"]]},
        {"tools": [{"function": TOOL["function"]}]},
        {"functions": [TOOL["function"]]},
        {"functions": json.dumps([TOOL["function"]]), "tools": None},
    ],
)
def test_tools_have_one_shape(columns: Any, write_rows: Any) -> None:
    assert read({"messages": [QUESTION, ANSWER], **columns}, write_rows).tools == (TOOL,)


@pytest.mark.parametrize("tools", [None, "", [], "[]", "null"])
def test_empty_tools_leave_the_key_as_it_is(tools: Any, write_rows: Any) -> None:
    row = {"messages": [QUESTION, ANSWER]}
    assert read({**row, "tools": tools}, write_rows).key() == read(row, write_rows).key()


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_has_one_name(name: str, write_rows: Any) -> None:
    row = {"messages": [QUESTION, {**ANSWER, name: "It is July."}]}
    conversation = read(row, write_rows)
    assert conversation.messages[1].fields == {"reasoning_content": "It is July."}
    assert conversation.messages[1].text == "Sun."


def test_a_thought_among_the_parts_is_read(write_rows: Any) -> None:
    content = [{"type": "thinking", "thinking": "It is July."}, {"type": "text", "text": "Sun."}]
    conversation = read({"messages": [QUESTION, {**ANSWER, "content": content}]}, write_rows)
    assert conversation.messages[1].fields == {"reasoning_content": "It is July."}
    assert conversation.messages[1].text == "Sun."


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}, {"loss": 0.0}, {"loss": False}])
def test_a_turn_of_no_weight_is_not_learned(mark: Any, write_rows: Any) -> None:
    row = {"messages": [QUESTION, {**ANSWER, **mark}, QUESTION, {**ANSWER, "weight": 1}]}
    conversation = read(row, write_rows)
    assert [message.learned for message in conversation.messages] == [True, False, True, True]


@pytest.mark.parametrize(
    "schema", [{"type": "object"}, {"type": "object", "properties": {"city": {"type": "string"}}}]
)
@pytest.mark.parametrize("own", [{}, {"arguments": None}, {"args": ARGUMENTS}])
def test_a_schema_is_not_taught_as_arguments(schema: Any, own: Any, write_rows: Any) -> None:
    call = {"name": "weather", "parameters": schema, **own}
    dataset = load_conversations(write_rows([calling(tool_calls=[call])]))
    (called,) = dataset[0].messages[1].fields["tool_calls"]
    assert called["function"]["arguments"] == own.get("args", {})
    assert dataset.columns_not_read() == ["messages[].tool_calls[].parameters"]


@pytest.mark.parametrize(
    "mark",
    [
        *({"is_masked": False}, {"ignore_loss": False}, {"no_loss": 0}, {"masked": False}),
        *({"recipient": "bob"}, {"channel": "#general"}, {"channel": "final"}),
        *({"recipient": "all"}, {"recipient": "python-team"}, {"channel": 7}),
        *({"think": True}, {"cot": 0.7}, {"thoughts": ["Hm."]}, {"chain_of_thought": {"n": 1}}),
    ],
)
def test_marks_that_mean_nothing_here_are_listed(mark: Any, write_rows: Any) -> None:
    dataset = load_conversations(write_rows([{"messages": [QUESTION, {**ANSWER, **mark}]}]))
    assert [message.text for message in dataset[0].messages] == ["Weather?", "Sun."]
    assert [(message.learned, message.fields) for message in dataset[0].messages] == [
        (True, {})
    ] * 2
    assert dataset.columns_not_read() == [f"messages[].{next(iter(mark))}"]


@pytest.mark.parametrize(
    ("role", "mark"),
    [
        *(("user", {"weight": 0}), ("user", {"mask": 1}), ("system", {"loss": 0.5})),
        *(("assistant", {"weight": 1}), ("assistant", {"is_masked": False})),
    ],
)
def test_marks_of_parts_count_in_answers_alone(role: str, mark: Any, write_rows: Any) -> None:
    turn = {"role": role, "content": [{"type": "text", "text": "Hm.", **mark}]}
    dataset = load_conversations(write_rows([{"messages": [turn, QUESTION, ANSWER]}]))
    assert dataset[0].messages[0].text == "Hm."
    assert dataset[0].messages[0].learned
    assert dataset.columns_not_read() == [f"messages[].content[].{next(iter(mark))}"]


def test_a_thought_by_a_vague_name_is_the_assistants(write_rows: Any) -> None:
    row = {"messages": [{**QUESTION, "think": "Hm."}, {**ANSWER, "think": True, "cot": "July."}]}
    dataset = load_conversations(write_rows([row]))
    question, answer = dataset[0].messages
    assert (question.fields, answer.fields) == ({}, {"reasoning_content": "July."})
    assert dataset.columns_not_read() == ["messages[].think"]
    row = {"messages": [QUESTION, {**ANSWER, "reasoning": "It is July.", "cot": "July."}]}
    dataset = load_conversations(write_rows([row]))
    assert dataset[0].messages[1].fields == {"reasoning_content": "It is July."}
    assert dataset.columns_not_read() == ["messages[].cot"]


def test_a_developer_is_a_role_of_its_own(write_rows: Any) -> None:
    row = {"messages": [{"role": "developer", "content": "Be brief."}, QUESTION, ANSWER]}
    assert read(row, write_rows).messages[0].role == "developer"


@pytest.mark.parametrize("own", [{"enable_thinking": False}, '{"enable_thinking": false}'])
def test_a_rows_variables_go_before_the_recipes(own: Any, write_rows: Any) -> None:
    rows = [{"messages": [QUESTION, ANSWER], "chat_template_kwargs": own}]
    rows.append({"messages": [QUESTION, ANSWER]})
    path = str(write_rows(rows))
    variables = {"enable_thinking": True, "style": "plain"}
    dataset = load_data(DataSection(path=path, template_variables=variables))
    dataset.validate()
    assert [sample.template_variables for sample in dataset] == [
        {"enable_thinking": False, "style": "plain"},
        variables,
    ]
    plain = load_conversations(path)
    assert plain[0].template_variables == {"enable_thinking": False}
    assert len({plain[0].key(), plain[1].key(), dataset[1].key()}) == 3
    with pytest.raises(RecipeError, match=r"data.template_variables.*found messages, tools"):
        load_data(DataSection(path=path, template_variables={"tools": [], "messages": []}))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (calling(tool_calls=[{"function": {"arguments": {}}}]), "not a call of a tool"),
        (calling(tool_calls=["weather"]), "tool_calls is not JSON"),
        (calling(tool_calls=[{**CALL, "type": "code"}]), "a tool of another type"),
        (
            calling(tool_calls=[{"function": {"name": "f", "arguments": "city=Bern"}}]),
            r"tool_calls\[\].arguments is not JSON",
        ),
        (
            calling(tool_calls=[{"function": {"name": "f", "arguments": [1]}}]),
            r"tool_calls\[\].arguments is not an object",
        ),
        (calling(tool_calls=[CALL], function_call=CALL), "both tool_calls and function_call"),
        (calling(function_calls="weather()"), "function_calls is not JSON"),
        (
            calling(tool_calls=[{**CALL, "arguments": {"city": "Rome"}}]),
            "a call with two different arguments; found call.arguments and function.arguments",
        ),
        (
            calling(tool_calls=[{"name": "f", "parameters": {"x": 1}, "input": {"x": 2}}]),
            "a call with two different arguments; found call.parameters and call.input",
        ),
        (
            {"messages": [{"role": "system", "content": "s", "tools": [TOOL]}, QUESTION, ANSWER]},
            "the system's turn has tools, which is read beside the turns",
        ),
        (
            {"messages": [{**QUESTION, "functions": json.dumps([TOOL])}, ANSWER]},
            "the user's turn has functions, which is read beside the turns",
        ),
        ({"messages": [QUESTION, {**ANSWER, "is_masked": True}]}, "a turn has is_masked, which"),
        ({"messages": [QUESTION, {**ANSWER, "no_loss": True}]}, "a turn has no_loss, which"),
        ({"messages": [QUESTION, {**ANSWER, "ignore": True}]}, "a turn has ignore, which"),
        ({"messages": [QUESTION, {**ANSWER, "label": False}]}, "label of a turn is False, which"),
        (
            {
                "messages": [
                    QUESTION,
                    {
                        "role": "assistant",
                        "content": [{"type": "text", "text": "Hm.", "weight": 0}, "Sun."],
                    },
                ]
            },
            "a part of a message has weight, which is read of whole turns alone",
        ),
        (
            {"messages": [QUESTION, {**ANSWER, "channel": "analysis"}, ANSWER]},
            "has channel, which is not read; found 'analysis'. Write thoughts into reasoning_cont",
        ),
        (
            {"messages": [QUESTION, {**ANSWER, "recipient": "functions.f"}, ANSWER]},
            "the assistant's turn has recipient",
        ),
        (
            {"messages": [QUESTION, {**ANSWER, "recipient": "python"}, ANSWER]},
            "the assistant's turn has recipient",
        ),
        (
            {"messages": [QUESTION, {**ANSWER, "recipient": "browser.search"}, ANSWER]},
            "the assistant's turn has recipient",
        ),
        (
            {"messages": [QUESTION, {**ANSWER, "channel": "commentary to=functions.f"}, ANSWER]},
            "the assistant's turn has channel",
        ),
        (
            {"messages": [QUESTION, {**ANSWER, "loss_scale": 0.1}]},
            "loss_scale of a turn is neither 0 nor 1",
        ),
        (calling(role="function_call", content="weather()"), "function_call's turn is not JSON"),
        (
            {"messages": [{**QUESTION, "tool_calls": [CALL]}, ANSWER]},
            "the user's turn holds a call of a tool",
        ),
        (
            {"messages": [{**QUESTION, "thinking": "Hm."}, ANSWER]},
            "the user's turn holds a thought",
        ),
        (
            {"messages": [QUESTION, {**ANSWER, "thinking": "a", "reasoning": "b"}]},
            "both reasoning and thinking, and they differ",
        ),
        ({"messages": [QUESTION, {**ANSWER, "thinking": ["a"]}]}, "thought of a turn is not text"),
        (
            {"messages": [QUESTION, {**ANSWER, "weight": 0.5}]},
            "weight of a turn is neither 0 nor 1",
        ),
        ({"messages": [QUESTION, {**ANSWER, "weight": 2}]}, "weight of a turn is neither 0 nor 1"),
        ({"messages": [QUESTION, {**ANSWER, "train": "no"}]}, "train of a turn is neither 0 nor 1"),
        (
            {"messages": [QUESTION, {**ANSWER, "weight": 0, "train": True}]},
            "weight and train of a turn contradict",
        ),
        ({"messages": [QUESTION, {**ANSWER, "weight": 0}]}, "no turn of the assistant is learned"),
        (
            {"messages": [{**QUESTION, "train": True}, ANSWER]},
            "the user's turn is marked to be learned by train",
        ),
        ({"messages": [QUESTION, {**ANSWER, "name": ["x"]}]}, "name of a turn is not text"),
        (
            {"messages": [{**QUESTION, "value": "Rain?"}, ANSWER]},
            "both content and value, and they differ",
        ),
        (
            {"messages": [QUESTION, ANSWER], "tools": "weather"},
            "tools is not JSON",
        ),
        ({"messages": [QUESTION, ANSWER], "tools": [{"parameters": {}}]}, "not a tool"),
        (
            {"messages": [QUESTION, ANSWER], "tools": [TOOL], "functions": [TOOL]},
            "both tools and functions",
        ),
        (
            {"messages": [QUESTION, ANSWER], "chat_template_kwargs": "[1]"},
            "chat_template_kwargs is not an object",
        ),
        (
            {"messages": [QUESTION, ANSWER], "chat_template_kwargs": {"tools": []}},
            "what belongs to the conversation itself",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(row: Any, problem: str, write_rows: Any) -> None:
    with pytest.raises(DataError, match=rf"^train.jsonl:1: .*{problem}") as caught:
        load_conversations(write_rows([row])).validate()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "\ud83d"}, ANSWER]},
        {"messages": [QUESTION, ANSWER], "id": "a\udc00"},
        {"messages": [QUESTION, {**ANSWER, "reasoning": "\ud83d"}]},
        {"messages": [QUESTION, ANSWER], "tools": [{"name": "\ud83d"}]},
    ],
)
def test_half_a_character_is_refused_with_its_row(row: Any, write_rows: Any) -> None:
    with pytest.raises(DataError, match=r"train.jsonl:2: .*lone surrogate.*found '\\ud"):
        load_conversations(write_rows([{"messages": [QUESTION, ANSWER]}, row])).validate()


def test_a_deep_argument_is_refused_with_its_row(write_rows: Any) -> None:
    deep = "[" * 100_000
    row = calling(tool_calls=[{"function": {"name": "f", "arguments": deep}}])
    with pytest.raises(DataError, match=r"train.jsonl:1: .*arguments is not JSON"):
        load_conversations(write_rows([row])).validate()


def test_null_in_objects_is_kept_and_reported_once(write_rows: Any, caplog: Any) -> None:
    path = write_rows([calling(tool_calls=[CALL]), calling(tool_calls=json.dumps([CALL]))])
    dataset = load_conversations(path)
    dataset.validate()
    assert dataset[0].key() == dataset[1].key()
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("messages[].tool_calls[].arguments hold null. The template reads it.")


def test_a_key_that_loses_a_value_is_refused_in_json_text_too(write_rows: Any) -> None:
    row = calling(tool_calls=[{"name": "f", "arguments": '{"a": 1, "a": 2}'}])
    with pytest.raises(DataError, match=r"arguments is not JSON .the key 'a' is given twice"):
        load_conversations(write_rows([row])).validate()


@pytest.mark.parametrize("is_json", [True, False])
def test_columns_of_a_table_count_as_absent_where_they_hold_null(
    is_json: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "prepared")

    def call(**arguments: Any) -> list[Any]:
        value = json.dumps(arguments) if is_json else arguments
        return [{"type": "function", "function": {"name": "weather", "arguments": value}}]

    rows = [
        {"messages": [QUESTION, {"role": "assistant", "tool_calls": call(city="Bern")}]},
        {"messages": [QUESTION, {**ANSWER, "weight": 1}]},
        {"messages": [QUESTION, {"role": "assistant", "tool_calls": call(day=3)}], "image": ""},
    ]
    datasets.Dataset.from_list(rows).to_parquet(str(folder / "rows.parquet"))
    dataset = load_conversations(folder / "rows.parquet")
    dataset.validate()
    calls = [sample.messages[1].fields.get("tool_calls") for sample in dataset]
    assert [c and c[0]["function"]["arguments"] for c in calls] == [
        {"city": "Bern"},
        None,
        {"day": 3},
    ]
    assert dataset.columns_not_read() == []
    assert (". JSON text in their place is exact" in caplog.text) is not is_json


def test_json_values_of_a_table_are_exact(
    folder: Path, monkeypatch: pytest.MonkeyPatch, write_rows: Any
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "prepared")
    rows = [
        calling(tool_calls=[CALL]),
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, ANSWER]},
    ]
    path = write_rows(rows)
    datasets.load_dataset("json", data_files=str(path), split="train").save_to_disk(
        folder / "saved"
    )
    table = load_conversations(folder / "saved")
    assert table.fingerprint() == load_conversations(path).fingerprint()
    assert table[0].messages[1].fields["tool_calls"] == [CALL]
