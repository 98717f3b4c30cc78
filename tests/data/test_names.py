"""Ids are names: those that are given again get a number."""

from __future__ import annotations

import logging
import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlsi_cache.data import load_conversations
from vlsi_cache.data.reading.forms.names import find_repetitions, name_digest


def names(ids: list[Any], write_rows: Any, chat: Any) -> list[str]:
    rows = [{**chat("a", "b"), "id": identity} for identity in ids]
    dataset = load_conversations(write_rows(rows))
    dataset.validate()
    assert pickle.loads(pickle.dumps(dataset))[-1] == dataset[-1]
    return [sample.sample_id for sample in dataset]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["a", "a", "b", "a"], ["a", "a#2", "b", "a#3"]),
        (["a", "a#2", "a", "a"], ["a", "a#2", "a#3", "a#4"]),
        (["a", "a", "a#2", "a#2"], ["a", "a#3", "a#2", "a#2#2"]),
        ([None, "0", 0, None], ["0", "0#2", "0#3", "3"]),
        (["1", None], ["1", "1#2"]),
        (["", ""], ["", "#2"]),
        (["a", "b"], ["a", "b"]),
    ],
)
def test_the_second_row_of_a_name_is_numbered(
    ids: list[Any], expected: list[str], write_rows: Any, chat: Any
) -> None:
    assert names(ids, write_rows, chat) == expected


def test_the_log_says_once_how_many_names_are_numbered(
    write_rows: Any, chat: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        names(["x", "y", "x", "x"], write_rows, chat)
    (record,) = caplog.records
    assert "2 samples have the id of another; they are numbered, such as x#2" in record.getMessage()


@given(st.lists(st.sampled_from(["a", "a#2", "a#3", "a#2#2", "b", "", "#2"]), min_size=1))
def test_all_names_differ_and_first_ones_stay(given_names: list[str]) -> None:
    digests = np.array([name_digest(name) for name in given_names], np.uint64)
    repetitions = find_repetitions(digests, lambda row: given_names[row])
    numbered = [repetitions.name(row, name) for row, name in enumerate(given_names)]
    assert max(Counter(numbered).values()) == 1
    seen = set[str]()
    for before, after in zip(given_names, numbered, strict=True):
        assert (before == after) is (before not in seen)
        seen.add(before)
