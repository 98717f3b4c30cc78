"""The forms that people bring, each with the conversation that it means."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from vlsi_cache.data import Conversation, TextPart, load_conversations, load_data
from vlsi_cache.errors import DataError, RecipeError
from vlsi_cache.recipe import DataSection


def said(conversation: Conversation) -> list[tuple[str, str]]:
    """Roles and texts, with a bar for every image."""
    return [
        (
            message.role,
            "".join(part.text if isinstance(part, TextPart) else "|" for part in message.parts),
        )
        for message in conversation.messages
    ]


ASKED = [("user", "q"), ("assistant", "a")]
SYSTEM = [("system", "s"), *ASKED]
TWO = [*ASKED, ("user", "q2"), ("assistant", "a2")]
MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
MORE = [{"role": "user", "content": "q2"}, {"role": "assistant", "content": "a2"}]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "q", "completion": "a"}, ASKED),
        ({"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}, ASKED),
        ({"prompt": json.dumps(MESSAGES[:1]), "completion": MESSAGES[1:]}, ASKED),
        ({"prompt": "q", "completion": MESSAGES[1:]}, ASKED),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, ASKED),
        ({"prompt": MESSAGES[:1], "chosen": MESSAGES[1:], "rejected": MORE}, ASKED),
        ({"chosen": MESSAGES, "rejected": MORE}, ASKED),
        ({"prompt": "q", "chosen": MESSAGES}, ASKED),
        ({"prompt": MESSAGES[:1], "chosen": MESSAGES}, ASKED),
        ({"prompt": [*MESSAGES, MORE[0]], "completion": MORE[1:]}, TWO),
        ({"prompt": "q", "response": "a"}, ASKED),
        ({"instruction": "q", "input": "", "output": "a"}, ASKED),
        ({"instruction": "q", "input": "i", "output": "a"}, [("user", "q\ni"), ASKED[1]]),
        ({"instruction": "q", "context": "i", "response": "a"}, [("user", "q\ni"), ASKED[1]]),
        ({"instruction": "q", "output": "a", "system": "s"}, SYSTEM),
        ({"instruction": "q2", "output": "a2", "history": [["q", "a"]]}, TWO),
        ({"instruction": "q", "output": "a", "history": None, "input": None}, ASKED),
        ({"question": "q", "answer": "a"}, ASKED),
        ({"query": "q", "response": "a"}, ASKED),
        ({"input": "q", "output": "a"}, ASKED),
        ({"question": "q", "answer": "a", "system_prompt": "s"}, SYSTEM),
        ({"query": "q2", "response": "a2", "history": [["q", "a"]]}, TWO),
        ({"query": "q2", "response": "a2", "history": '[["q", "a"]]'}, TWO),
        ({"query": "q2", "response": "a2", "history": MESSAGES}, TWO),
        ({"query": "q", "response": "a", "history": [["", ""]]}, ASKED),
        ({"instruction": "q2", "output": "a2", "history": json.dumps(MESSAGES)}, TWO),
        (
            {
                "query": "q2",
                "response": "a2",
                "history": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
            },
            TWO,
        ),
        ({"prompt": "q2", "completion": "a2", "history": [["q", "a"]]}, TWO),
        ({"texts": [{"user": "q", "assistant": "a", "source": "x"}]}, ASKED),
        (
            {"texts": [{"user": "q", "assistant": "a"}, {"user": "q2", "assistant": "a2"}]},
            TWO,
        ),
        ({"conversation": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, ASKED),
        ({"dialog": MESSAGES}, ASKED),
        ({"messages": json.dumps(MESSAGES)}, ASKED),
        ({"messages": {"role": ["user", "assistant"], "content": ["q", "a"]}}, ASKED),
        ({"messages": None, "question": "q", "answer": "a"}, ASKED),
        ({"messages": MESSAGES, "prompt": "other", "chosen": MORE}, ASKED),
        ({"messages": MESSAGES, "system": "s"}, SYSTEM),
        ({"messages": [{"role": "system", "content": "s"}, *MESSAGES], "system": "s"}, SYSTEM),
        (
            {
                "system": "s",
                "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
            },
            SYSTEM,
        ),
    ],
)
def test_a_form_is_read_as_it_is_meant(row: Any, expected: Any, write_rows: Any) -> None:
    dataset = load_conversations(write_rows([row]))
    dataset.validate()
    assert said(dataset[0]) == expected
    assert dataset[0].templated


@pytest.mark.parametrize(
    "history",
    ["Patient has had fever", "[see above]", ["q", "a"], [[3, 4]], [["q"]], {"visits": 2}, 7],
)
def test_a_history_that_is_not_of_turns_is_listed(history: Any, write_rows: Any) -> None:
    dataset = load_conversations(
        write_rows(
            [
                {"question": "q", "answer": "a", "history": history},
                {"instruction": "q", "output": "a", "history": history},
            ]
        )
    )
    assert [said(sample) for sample in dataset] == [ASKED, ASKED]
    assert dataset.columns_not_read() == ["history"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "a", "label": 0},
        {"prompt": "q", "completion": "a", "label": "False"},
        {"prompt": "q", "completion": "a", "label": 1},
        {"instruction": "q", "output": "a", "label": False},
        {"question": "q", "answer": "a", "label": False},
        {"conversations": MESSAGES, "label": 0},
        {"messages": MESSAGES, "label": 0},
    ],
)
def test_a_label_that_may_be_a_class_is_listed(row: Any, write_rows: Any, caplog: Any) -> None:
    dataset = load_conversations(write_rows([row]))
    dataset.validate()
    assert said(dataset[0]) == ASKED
    assert dataset.columns_not_read() == ["label"]
    assert "columns not read: label (drop rows that it marks as bad answers)" in caplog.text


@pytest.mark.parametrize("name", ["model", "chatgpt", "bot", "bing", "GPT", "assistant"])
def test_other_names_of_the_assistant_are_known(name: str, write_rows: Any) -> None:
    row = {"conversations": [{"from": "human", "value": "q"}, {"from": name, "value": "a"}]}
    assert said(load_conversations(write_rows([row]))[0]) == ASKED


def test_the_prompt_of_a_completion_is_not_learned(write_rows: Any) -> None:
    row = {"prompt": [*MESSAGES, MORE[0]], "completion": MORE[1:]}
    (conversation,) = load_conversations(write_rows([row]))
    assert [turn.learned for turn in conversation.messages] == [True, False, True, True]


def test_forms_of_the_same_conversation_have_the_same_key(write_rows: Any) -> None:
    rows = [
        {"messages": MESSAGES},
        {"prompt": "q", "completion": "a"},
        {"instruction": "q", "output": "a", "input": ""},
        {"texts": [{"user": "q", "assistant": "a"}]},
        {
            "messages": [
                {**turn, "weight": 1} if turn["role"] == "assistant" else turn for turn in MESSAGES
            ]
        },
    ]
    assert len({sample.key() for sample in load_conversations(write_rows(rows))}) == 1


def test_a_text_alone_is_plain(write_rows: Any) -> None:
    dataset = load_conversations(write_rows([{"text": "Once <image> upon."}]))
    dataset.validate()
    assert not dataset[0].templated
    assert said(dataset[0]) == [("assistant", "Once <image> upon.")]
    assert (
        dataset[0].key()
        != load_conversations(
            write_rows([{"messages": [{"role": "assistant", "content": "Once <image> upon."}]}])
        )[0].key()
    )


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "q"}, "row is not a conversation.*found fields prompt"),
        ({"question": "q", "answer": ["a", "b"]}, "answer is not a list of turns"),
        ({"question": ["q"], "answer": "a"}, "question is not a list of turns"),
        ({"question": "q", "answer": 7}, "answer is not text; found 7"),
        ({"question": "q", "answer": ""}, "response is empty"),
        ({"instruction": "q", "input": 3, "output": "a"}, "input is not text; found 3"),
        ({"query": "q", "response": "a", "history": [{"role": "x", "content": ""}]}, "unknown ro"),
        ({"texts": [{"user": "q"}]}, r"texts\[\].assistant is not text; found None"),
        ({"texts": ["q"]}, "texts is not a list of turns"),
        ({"chosen": "Human: q"}, "chosen is text, and there is no prompt"),
        ({"prompt": "other", "chosen": MESSAGES}, "chosen begins with another prompt"),
        ({"text": 3}, "text is not text; found 3"),
        ({"text": "a", "image": "red.png"}, "row has text, which is plain, and image"),
        ({"messages": MESSAGES, "system": 1}, "system is not text"),
        (
            {"messages": [{"role": "system", "content": "t"}, *MESSAGES], "system": "s"},
            "row has system, and its first turn is another message",
        ),
        ({"messages": '[{"role": "user"'}, "messages is not JSON"),
        ({"messages": MESSAGES, "tools": "[" * 100_000}, "tools is not JSON .it is nested too"),
        ({"messages": "[]"}, "messages is not a list of turns"),
    ],
)
def test_a_form_that_is_not_sound_is_refused(row: Any, problem: str, write_rows: Any) -> None:
    with pytest.raises(DataError, match=rf"^train.jsonl:1: {problem}") as caught:
        load_conversations(write_rows([row])).validate()
    assert "\n" not in str(caught.value)


def test_fields_that_nothing_reads_are_listed_once(
    write_rows: Any, caplog: pytest.LogCaptureFixture
) -> None:
    part = {"type": "text", "text": "q", "cache_control": {"type": "ephemeral"}, "image": None}
    rows = [
        {"messages": MESSAGES, "source": "web", "score": 0, "notes": None, "tags": []},
        {"messages": [{"role": "user", "content": [part], "mood": "glad"}, MESSAGES[1]]},
        {"prompt": "q", "chosen": "a", "rejected": "b", "source": "web"},
        {"texts": [{"user": "q", "assistant": "a", "source": "web"}]},
        {"messages": MESSAGES, "prompt": "unused"},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "red.png", "detail": "low"}}
                    ],
                },
                MESSAGES[1],
            ]
        },
    ]
    dataset = load_conversations(write_rows(rows))
    assert dataset.columns_not_read() == []
    with caplog.at_level(logging.WARNING):
        dataset.validate()
    expected = [
        "messages[].content[].cache_control",
        "messages[].content[].image_url.detail",
        "messages[].mood",
        "prompt",
        "rejected",
        "score",
        "source",
        "texts[].source",
    ]
    assert dataset.columns_not_read() == expected
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == ["columns not read: " + ", ".join(expected)]


def test_columns_are_renamed_and_left_out(write_rows: Any, caplog: Any) -> None:
    path = str(write_rows([{"ask": "q", "reply": "a", "extra": 1, "picture": "red.png"}]))
    columns = {"ask": "question", "reply": "answer", "extra": None, "picture": "image"}
    dataset = load_data(DataSection(path=path, columns=columns))
    dataset.validate()
    assert said(dataset[0]) == [("user", "|q"), ("assistant", "a")]
    assert dataset.columns_not_read() == []
    assert "no row has" not in caplog.text
    slip = load_data(DataSection(path=path, columns={**columns, "answr": "text", "xtra": None}))
    slip.validate()
    assert "data.columns names columns that no row has: answr, xtra" in caplog.text
    with pytest.raises(RecipeError, match=r"data.columns: a column gets a name that is never read"):
        load_data(DataSection(path=path, columns={"ask": "ask2"}))
    both = str(write_rows([{"ask": "q", "question": "p", "answer": "a"}], "both.jsonl"))
    with pytest.raises(DataError, match="renames ask to question, which the row has already"):
        load_data(DataSection(path=both, columns={"ask": "question"})).validate()
