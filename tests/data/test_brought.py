"""Rows of well-known public sets and of other trainers' formats: read whole, or refused by name."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from support.processors import image_processor_for, text_tokenizer
from vlsi_cache.data import BatchEncoder, Conversation, load_conversations
from vlsi_cache.data.reading.forms.nearmiss import with_near_miss
from vlsi_cache.errors import DataError

USER = {"role": "user", "content": "What?"}
ANSWER = {"role": "assistant", "content": "red"}
CALL = {"type": "tool_use", "id": "t", "name": "w", "input": {}}


def _read(row: Any, write_rows: Any) -> Conversation:
    (sample,) = load_conversations(write_rows([row]))
    return sample


def _said(sample: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in sample.messages]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"problem": "1+1", "solution": "2"}, [("user", "1+1"), ("assistant", "2")]),
        (
            {"system_message": "Be brief.", "question": "q", "response": "r"},
            [("system", "Be brief."), ("user", "q"), ("assistant", "r")],
        ),
        (
            {"instruction": "", "input": "b", "output": "c", "history": [["x", "y"]]},
            [("user", "x"), ("assistant", "y"), ("user", "b"), ("assistant", "c")],
        ),
        (
            {"messages": [], "conversations": None, "question": "q", "answer": "r"},
            [("user", "q"), ("assistant", "r")],
        ),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "Chatbot", "value": "r"}]},
            [("user", "q"), ("assistant", "r")],
        ),
    ],
)
def test_forms_of_public_sets_are_read(row: Any, said: Any, write_rows: Any) -> None:
    assert _said(_read(row, write_rows)) == said


@pytest.mark.parametrize(
    "key",
    [
        *("loss_weight", "training", "trainable", "learn"),
        *("loss_scale", "loss_multiplier", "step_loss_mask", "train_on_turn", "loss_mask"),
    ],
)
def test_other_names_of_a_weight_mean_the_same(key: str, write_rows: Any) -> None:
    row = {"messages": [USER, {**ANSWER, key: 0}, USER, {**ANSWER, key: True}]}
    assert [message.learned for message in _read(row, write_rows).messages[1::2]] == [False, True]


def test_images_and_thoughts_of_anthropics_messages_are_read(folder: Path, write_rows: Any) -> None:
    encoded = (folder / "red.png").read_bytes()
    source = {"type": "base64", "media_type": "image/png"}
    image = {"type": "image", "source": source | {"data": base64.b64encode(encoded).decode()}}
    answer = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "red"}]
    row = {
        "messages": [
            {"role": "user", "content": [image, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": answer},
        ]
    }
    dataset = load_conversations(write_rows([row]))
    (sample,) = dataset
    assert [image.data for image in sample.images] == [encoded]
    assert sample.messages[1].fields == {"reasoning_content": "Hm."}
    assert dataset.columns_not_read() == []


@pytest.mark.parametrize("key", ["thinking_content", "thoughts", "think", "cot"])
def test_other_names_of_a_thought_mean_the_same(key: str, write_rows: Any) -> None:
    sample = _read({"messages": [USER, {**ANSWER, key: "Hm."}]}, write_rows)
    assert sample.messages[1].fields == {"reasoning_content": "Hm."}


@pytest.mark.parametrize(
    ("row", "learned"),
    [
        ({"prompt": "a", "completion": "b"}, "b"),
        ({"question": "a", "answer": "b", "history": [["c", "d"]]}, "b"),
        ({"instruction": "a", "output": "b"}, "b"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "b"),
    ],
)
def test_a_rows_own_thought_goes_before_its_one_answer(
    row: Any, learned: str, write_rows: Any
) -> None:
    path = write_rows([{**row, "reasoning_content": "Hm.", "cot": "Hm."}])
    dataset = load_conversations(path)
    *before, answer = dataset[0].messages
    assert (answer.text, answer.fields) == (learned, {"reasoning_content": "Hm."})
    assert all(not message.fields for message in before)
    assert dataset.columns_not_read() == (["cot", "rejected"] if "rejected" in row else ["cot"])
    assert with_near_miss("cot") == "cot (perhaps reasoning_content)"


def test_a_rows_own_thought_beside_turns_is_listed(write_rows: Any) -> None:
    rows = [
        {"messages": [USER, ANSWER], "reasoning_content": "Hm."},
        {"prompt": "a", "completion": [ANSWER], "reasoning_content": "Hm."},
    ]
    dataset = load_conversations(write_rows(rows))
    assert [dict(sample.messages[-1].fields) for sample in dataset] == [{}, {}]
    assert dataset.columns_not_read() == ["reasoning_content"]


@pytest.mark.parametrize(
    ("name", "value", "advised"),
    [
        ("weight", 0.5, "weight (read in turns alone)"),
        ("loss_mask", 1, "loss_mask (read in turns alone)"),
        ("enable_thinking", 0, "enable_thinking (perhaps in chat_template_kwargs)"),
        ("mood", 0, "mood"),
    ],
)
def test_a_column_that_is_read_elsewhere_is_listed_with_its_place(
    name: str, value: float, advised: str, write_rows: Any, caplog: pytest.LogCaptureFixture
) -> None:
    load_conversations(write_rows([{"prompt": "a", "completion": "b", name: value}])).validate()
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == [f"columns not read: {advised}"]


@pytest.mark.parametrize("key", ["input_schema", "inputSchema"])
def test_schemas_of_tools_have_the_name_that_templates_read(key: str, write_rows: Any) -> None:
    schema = {"type": "object", "properties": {}}
    row = {"messages": [USER, ANSWER], "tools": [{"name": "w", key: schema}]}
    (tool,) = _read(row, write_rows).tools
    assert tool["function"] == {"name": "w", "parameters": schema}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": "hi", "role": "prompter", "parent_id": None}, "role, which belongs to a turn"),
        ({"conversation": [{"speaker": "u", "text": "a"}]}, "unknown role.*keys speaker, text"),
        ({"conversation": [{"human": "a", "robot": "b"}]}, "keys human, robot"),
        ({"messages": [USER, {**ANSWER, "mask": 1}]}, "a turn has mask, which nothing reads"),
        ({"messages": [USER, {**ANSWER, "train_detail": [{"begin": 0}]}]}, "has train_detail"),
        ({"messages": [USER, {"role": "assistant", "content": [CALL]}]}, "Write calls into tool_"),
        ({"Messages": [USER, ANSWER]}, r"\{Messages: messages\}"),
        ({"input": {"messages": [USER]}, "preferred": [ANSWER]}, r"\{theirs: ours\}"),
        ({"question": "q", "answer": ["a", "b"]}, "expected text, or .*found .'a', 'b'"),
        ({"chosen": "\n\nHuman: a", "rejected": "b"}, "Split it into prompt and chosen"),
        (json.dumps(json.dumps({"messages": []})), "decode it once more"),
        ('{"messages": [], "id": ' + "9" * 5000 + "}", "a number has too many digits"),
        ({"prompt": "a", "completion": "b", "label": False}, "marks the completion as one not to"),
        ('{"messages": ' + "[" * 4000 + "]" * 4000 + "}", "it is nested too deeply"),
        ({"messages": [USER, ANSWER], "label": False}, "marks the completion as one not to"),
        ({"messages": []}, "messages is empty"),
        ({"messages": [{"role": "user", "message": "a"}]}, "None, beside the keys role, message"),
        ({"messages": [{"role": "tool", "content": {"sun": 1}}]}, "Write it as JSON text"),
        ({"prompt": "a", "completion": "\u200b \ufeff\u00a0"}, "response is empty"),
        ({"messages": [["a"]]}, "messages is not a list of turns; expected \\[{"),
        ("null", "row is not a JSON object; found null"),
    ],
)
def test_what_is_not_read_is_refused_in_words_that_help(
    row: Any, problem: str, write_rows: Any
) -> None:
    with pytest.raises(DataError, match=f"train.jsonl:1: .*{problem}"):
        _read(row, write_rows)


@pytest.mark.parametrize(
    "tag",
    [
        *("<image_1>", "<image 1>", "<|image_1|>", "<ImageHere>", "<image-1>", "<img_1>"),
        *("<IMAGE>", "<|image|>", "<image/>", "[IMG]", "<picture 2>", "<photo_1>"),
        *("<|image_pad|>", "<IMG_CONTEXT>", "<image_soft_token>", "<start_of_image>"),
        "&lt;image&gt;",
    ],
)
def test_places_in_other_spellings_are_refused(tag: str, write_rows: Any) -> None:
    row = {"question": f"{tag} What?", "answer": "red", "image": "red.png"}
    with pytest.raises(DataError, match="a place for an image that is not read"):
        _read(row, write_rows)
    assert _said(_read({"question": tag, "answer": "red"}, write_rows))[0] == ("user", tag)
    mended = {**row, "question": "<image> What?"}
    assert len(_read(mended, write_rows).images) == 1


@pytest.mark.parametrize(
    "text",
    [
        *("<picture>", "<img>", "<photo>", "{image}", "<img src='a.png'/>", "</image>", "</img>"),
        *("![IMG](a.png)", "[img]a.png", "[IMG]https://x.org/a.png[/IMG]", "<svg><image></svg>"),
    ],
)
def test_code_that_speaks_of_images_is_read(text: str, write_rows: Any) -> None:
    row = {"question": f"Write {text} so.", "answer": "red", "images": ["red.png"]}
    sample = _read(row, write_rows)
    assert len(sample.images) == 1
    assert sample.messages[0].text == f"Write {text} so.".replace("<image>", "")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_have_reach_no_template(value: str, write_rows: Any) -> None:
    unread = f'{{"score": {value}, "prompt": "a", "completion": "b"}}'
    assert _said(_read(unread, write_rows)) == [("user", "a"), ("assistant", "b")]
    call = {"type": "function", "function": {"name": "w", "arguments": {"x": "HERE"}}}
    row = json.dumps({"messages": [USER, {"role": "assistant", "tool_calls": [call]}]})
    with pytest.raises(DataError, match="holds NaN or infinity"):
        _read(row.replace('"HERE"', value), write_rows)


@pytest.mark.parametrize("kind", ["qwen2_vl", "chatml"])
def test_an_answer_without_a_question_is_learned_without_its_header(
    kind: str, write_rows: Any
) -> None:
    # Qwen2-VL's template writes a system message of its own before the first turn.
    processor: Any = text_tokenizer(kind) if kind == "chatml" else image_processor_for(kind)
    sample = _read(
        {"messages": [{"role": "assistant", "content": "Hello"}, USER, ANSWER]}, write_rows
    )
    batch = BatchEncoder(processor, max_length=None)([sample])
    tokenizer = getattr(processor, "tokenizer", processor)
    learned = batch["input_ids"][batch["response_mask"]]
    assert tokenizer.decode(learned) == "Hello<|im_end|>red<|im_end|>"
