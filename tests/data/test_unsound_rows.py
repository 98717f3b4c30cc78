"""Rows that are not sound conversations still have an identity, for runs that skip them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlsi_cache.data import ConversationDataset, load_conversations
from vlsi_cache.errors import DataError

CAPTION = {"caption": "red"}


def _row(asked: str) -> dict[str, Any]:
    answer = {"role": "assistant", "content": "b"}
    return {"messages": [{"role": "user", "content": asked}, answer]}


def _load(path: Path, rows: list[dict[str, Any]], more: str = "") -> ConversationDataset:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + more, encoding="utf-8")
    return load_conversations(path)


def test_sound_data_has_one_fingerprint_whether_or_not_rows_are_skipped(tmp_path: Path) -> None:
    rows = [_row("a"), _row("c")]
    skipping = _load(tmp_path / "one.jsonl", rows).fingerprint(skip=True)
    assert skipping == _load(tmp_path / "two.jsonl", rows).fingerprint()


def test_an_unsound_row_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    rows = [_row("a"), CAPTION]
    with pytest.raises(DataError, match="not a conversation"):
        _load(tmp_path / "one.jsonl", rows).fingerprint()
    first = _load(tmp_path / "two.jsonl", rows).fingerprint(skip=True)
    for other in ([_row("a")], [_row("a"), {"caption": "blue"}], [_row("a"), _row("red")]):
        assert _load(tmp_path / "three.jsonl", other).fingerprint(skip=True) != first


def test_the_key_of_an_unsound_row_follows_from_the_row_alone(tmp_path: Path) -> None:
    """So parts of a dataset can be merged, whatever the numbers of their rows."""
    data = _load(tmp_path / "one.jsonl", [_row("a"), CAPTION], '{"messages": [\n')
    alone = _load(tmp_path / "two.jsonl", [CAPTION])
    assert [data.identify(index)[0] for index in range(3)] == ["0", "1", "2"]
    assert alone.identify(0)[1] == data.identify(1)[1] != data.identify(2)[1]


def test_a_row_whose_image_is_gone_keeps_its_name(tmp_path: Path) -> None:
    gone = {**_row("a"), "id": "seen", "image": "gone.png"}
    data = _load(tmp_path / "one.jsonl", [gone, {**_row("a"), "id": "seen"}, gone])
    data.validate(skip=True)
    assert [data.identify(index)[0] for index in range(3)] == ["seen", "seen#2", "seen#3"]
    assert data.identify(0)[1] == data.identify(2)[1] != data.identify(1)[1]
    with pytest.raises(DataError, match="image file is missing"):
        data.validate()
