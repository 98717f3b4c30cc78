"""Marks beside turns, exchanges in place of turns, and passages that nothing would read."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from vlsi_cache.data import Conversation, load_conversations, load_data
from vlsi_cache.errors import DataError
from vlsi_cache.recipe import DataSection

QUESTION = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "r"}
TURNS = [QUESTION, ANSWER]
ASKED = [("user", "q"), ("assistant", "r")]
SHARED = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]


def _read(row: Any, write_rows: Any) -> Conversation:
    (sample,) = load_conversations(write_rows([row]))
    return sample


def _said(sample: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in sample.messages]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"conversations": SHARED, "train": False}, "row has train: False, which marks it"),
        ({"prompt": "q", "completion": "r", "trainable": 0}, "row has trainable: 0, which marks"),
        ({"messages": TURNS, "weight": 0.0}, "row has weight: 0.0, which marks it as one not"),
        ({"conversations": SHARED, "label": False}, "label is False, which marks the completion"),
        ({"messages": TURNS * 2, "loss_mask": [0, 0, 0, 1]}, "row has loss_mask, a list for its"),
        ({"messages": TURNS * 2, "weights": [0, 1]}, "row has weights, a list for its turns"),
        (
            {"messages": TURNS, "objects": {"bbox": [[1, 2, 3, 4]]}, "system": "<bbox>"},
            "row has objects, and their places in the texts",
        ),
        ([QUESTION, ANSWER], r'Put the turns of a conversation into a list: {"messages"'),
    ],
)
def test_marks_beside_the_turns_are_refused(row: Any, words: str, write_rows: Any) -> None:
    with pytest.raises(DataError) as caught:
        list(load_conversations(write_rows([row, row] if isinstance(row, dict) else [[row]])))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "more",
    [
        *({"train": True}, {"train": "yes"}, {"loss": 0.0}, {"weight": 0.5}, {"label": 0}),
        *({"loss_mask": [1, 1]}, {"mask": [[0, 1], [1, 0]]}, {"objects": ["cat"]}),
        *({"weights": [0.5, 0.2, 0.3]}, {"label": True}),
    ],
)
def test_other_values_of_these_columns_are_listed(more: Any, write_rows: Any) -> None:
    dataset = load_conversations(write_rows([{"messages": TURNS, **more}]))
    assert _said(dataset[0]) == ASKED
    assert dataset.columns_not_read() == list(more)


@pytest.mark.parametrize(
    "names",
    [
        *(("input", "output"), ("human", "assistant"), ("user", "assistant")),
        *(("question", "answer"), ("query", "response"), ("prompt", "response")),
    ],
)
@pytest.mark.parametrize("column", ["conversation", "conversations", "messages"])
def test_exchanges_are_turns(names: tuple[str, str], column: str, write_rows: Any) -> None:
    question, answer = names
    entries = [{question: "q", answer: "r"}, {question: "q", answer: "r"}]
    for rows in ([{column: entries}], [{column: entries}] * 2):
        dataset = load_conversations(write_rows(rows))
        assert len(dataset) == len(rows)
        assert _said(dataset[0]) == ASKED * 2
        assert dataset.columns_not_read() == []


def test_fields_of_an_exchange_go_to_their_turns(write_rows: Any) -> None:
    entries = [
        {"system": "s", "input": "q", "output": "r", "output_with_loss": False},
        {"input": "q", "output": "r", "thought": "Hm.", "mood": "fine"},
    ]
    dataset = load_conversations(write_rows([{"conversation": entries}]))
    sample = dataset[0]
    assert _said(sample) == [("system", "s"), *ASKED, *ASKED]
    assert [turn.learned for turn in sample.messages if turn.role == "assistant"] == [False, True]
    assert sample.messages[-1].fields == {"reasoning_content": "Hm."}
    assert dataset.columns_not_read() == ["conversation[].mood"]
    shown = [{"images": ["a.png"], "user": "q", "assistant": "r"}]
    with pytest.raises(DataError, match="the user's turn has images beside its content"):
        _read({"conversations": shown}, write_rows)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"context": "Paris is large.", "question": "q", "answer": "r"}, "context"),
        ({"context": "Paris is large.", "prompt": "q", "response": "r"}, "context"),
        ({"input": "more", "question": "q", "answer": "r"}, "input"),
        (
            {"context": "Paris is large.", "question": "q", "chosen": "r", "rejected": "n"},
            "context",
        ),
    ],
)
def test_a_passage_beside_a_question_is_refused(row: Any, name: str, write_rows: Any) -> None:
    with pytest.raises(DataError, match=f"row has {name} beside .*, where nothing reads it"):
        _read(row, write_rows)
    section = DataSection(path=str(write_rows([row])), columns={name: None})
    assert _said(load_data(section)[0]) == ASKED
    within = {**row, next(key for key in row if row[key] == "q"): f"q {row[name]}"}
    assert _said(_read(within, write_rows))[-1] == ("assistant", "r")


def test_a_passage_can_be_put_after_its_question(write_rows: Any) -> None:
    row = {"context": "Paris is large.", "question": "q", "answer": "r"}
    columns = {"question": "instruction", "answer": "output"}
    section = DataSection(path=str(write_rows([row])), columns=columns)
    assert _said(load_data(section)[0]) == [("user", "q\nParis is large."), ASKED[1]]


@pytest.mark.parametrize("system", [[{"text": "s"}], [{"type": "text", "text": "s"}], ["s"]])
def test_a_systems_blocks_of_text_are_read(system: Any, write_rows: Any) -> None:
    row = {"system": system, "messages": TURNS}
    assert _said(_read(row, write_rows)) == [("system", "s"), *ASKED]


def test_blanks_around_a_role_are_no_part_of_it(write_rows: Any) -> None:
    turns = [{"role": " User", "content": "q"}, {"role": "assistant ", "content": "r"}]
    assert _said(_read({"messages": turns}, write_rows)) == ASKED


def _warnings(folder: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="vlsi_cache"):
        load_data(DataSection(path=str(folder)))
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_tables_beside_a_saved_dataset_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "saved"
    rows = [{"prompt": f"question {number}", "completion": "r"} for number in range(8)]
    Dataset.from_list(rows).save_to_disk(str(folder), num_shards=2)
    first, second = (folder / f"data-0000{number}-of-00002.arrow" for number in range(2))
    assert _warnings(folder, caplog) == []
    shutil.copy(first, folder / "copy.arrow")
    shutil.copy(first, folder / "cache-1234.arrow")
    (warned,) = _warnings(folder, caplog)
    assert "state.json does not name copy.arrow, which is not read" in warned
    (folder / "copy.arrow").unlink()
    kept = second.read_bytes()
    shutil.copy(first, second)
    (warned,) = _warnings(folder, caplog)
    assert f"its rows are there twice, since {second.name} holds what a table before it" in warned
    second.write_bytes(kept)
    state = json.loads((folder / "state.json").read_text())
    listed = state["_data_files"]
    (folder / "state.json").write_text(json.dumps({**state, "_data_files": listed[:1]}))
    (warned,) = _warnings(folder, caplog)
    assert f"state.json does not name {second.name}" in warned
    second.unlink()
    (folder / "state.json").write_text(json.dumps({**state, "_data_files": listed}))
    with pytest.raises(DataError, match=f"{second.name}: file is missing"):
        _warnings(folder, caplog)
