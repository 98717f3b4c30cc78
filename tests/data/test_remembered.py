"""A second command takes over what the first one read, and never what has changed since."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest

from vlsi_cache.data import load_conversations, load_data
from vlsi_cache.errors import DataError
from vlsi_cache.recipe import DataSection

AGAIN = "the data is as it was when it was read last"


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> Path:
    caplog.set_level("INFO")
    monkeypatch.setenv("VLSI_CACHE_HOME", str(tmp_path / "memory"))
    return tmp_path / "memory"


@pytest.fixture
def path(folder: Path, chat: Any, write_rows: Any) -> Path:
    rows = [
        {**chat("<image>What?", "red"), "images": ["red.png"], "id": "a", "mood": 1},
        {**chat("<image>Which?", "blue"), "images": ["blue.jpg"], "id": "a"},
        {**chat("Why?", "4"), "id": "b"},
    ]
    written: Path = write_rows(rows)
    return written


def _fresh(path: Path | str) -> str:
    return load_conversations(path).fingerprint(skip=True)


def _prepared(path: Path | str, caplog: Any) -> tuple[str, bool]:
    """The fingerprint, and whether it was remembered."""
    caplog.clear()
    found = load_conversations(path).prepare(skip=True)
    is_remembered = AGAIN in caplog.text
    assert is_remembered == ("reading and validating" not in caplog.text)
    return found.fingerprint, is_remembered


def test_the_second_time_takes_over_all_that_the_first_found(path: Path, caplog: Any) -> None:
    first = load_conversations(path)
    found = first.prepare()
    lines = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(lines) == 2
    caplog.clear()
    second = load_conversations(path)
    again = second.prepare()
    assert AGAIN in caplog.text
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == lines
    assert again.fingerprint == found.fingerprint == second.fingerprint() == _fresh(path)
    assert [sample.sample_id for sample in second] == ["a", "a#2", "b"]
    assert second.columns_not_read() == ["mood"]


def _in_place(path: Path, old: bytes, new: bytes) -> None:
    """Change bytes, and set the time of the change back."""
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(old, new))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def _replaced(path: Path) -> None:
    """Put another file of the same size and time in its place."""
    other = path.with_suffix(".other")
    shutil.copy2(path, other)
    _in_place(other, b"Why", b"Who")
    before = path.stat()
    other.replace(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


CHANGES: dict[str, Callable[[Path], object]] = {
    "a row is appended": lambda path: path.write_text(path.read_text() + path.read_text()),
    "bytes are changed in place": lambda path: _in_place(path, b"Why", b"Who"),
    "the file is replaced": _replaced,
    "an image is changed": lambda path: (path.parent / "red.png").write_bytes(b"other"),
    "an image is swapped": lambda path: shutil.copy(
        path.parent / "blue.jpg", path.with_name("red.png")
    ),
    "an image is gone": lambda path: (path.parent / "red.png").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_is_remembered_of_files_that_have_changed(
    change: str, path: Path, caplog: Any
) -> None:
    old, _ = _prepared(path, caplog)
    assert _prepared(path, caplog) == (old, True)
    CHANGES[change](path)
    new, is_remembered = _prepared(path, caplog)
    assert not is_remembered
    assert new == _fresh(path) != old
    assert _prepared(path, caplog) == (new, True)


def test_an_image_that_appears_later_is_seen(path: Path, caplog: Any) -> None:
    image = path.parent / "red.png"
    content = image.read_bytes()
    image.unlink()
    without, _ = _prepared(path, caplog)
    assert _prepared(path, caplog) == (without, True)
    image.write_bytes(content)
    assert _prepared(path, caplog) == (_fresh(path), False)


def test_a_file_that_changes_while_it_is_read_is_not_remembered(path: Path, caplog: Any) -> None:
    opened = load_conversations(path)
    # A line moves, and the size stays: even within one tick of the clock it is noticed.
    _in_place(path, b'"Why?"', b'"?"')
    _in_place(path, b'{"messages"', b'\n{"messages"')
    opened.prepare(skip=True)
    assert _prepared(path, caplog) == (_fresh(path), False)


def test_another_file_of_a_pattern_is_other_data(path: Path, caplog: Any) -> None:
    pattern = str(path.parent / "*.jsonl")
    old, _ = _prepared(pattern, caplog)
    shutil.copy(path, path.with_name("more.jsonl"))
    new, is_remembered = _prepared(pattern, caplog)
    assert not is_remembered
    assert new == _fresh(pattern) != old


@pytest.mark.parametrize(
    "other",
    [
        {"limit": 2},
        {"columns": {"mood": None}},
        {"template_variables": {"enable_thinking": False}},
        {"max_pixels_per_image": 1000},
    ],
)
def test_other_settings_remember_apart(other: Any, path: Path, caplog: Any) -> None:
    load_data(DataSection(path=str(path))).prepare()
    caplog.clear()
    found = load_data(DataSection(path=str(path), **other))
    found.prepare()
    assert AGAIN not in caplog.text
    fresh = load_data(DataSection(path=str(path), **other))
    fresh.validate()
    assert fresh.fingerprint() == found.fingerprint()
    assert fresh.columns_not_read() == found.columns_not_read()


def test_what_stops_a_command_is_found_each_time(path: Path) -> None:
    load_conversations(path).prepare(skip=True)
    (path.parent / "red.png").unlink()
    load_conversations(path).prepare(skip=True)
    for _ in range(2):
        with pytest.raises(Exception, match="missing"):
            load_conversations(path).prepare()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_a_damaged_memory_is_ignored_with_a_line(
    damage: str, path: Path, memory: Path, caplog: Any
) -> None:
    first, _ = _prepared(path, caplog)
    (file,) = (memory / "data").iterdir()
    content = bytearray(file.read_bytes())
    content[content.index(first.encode())] ^= 1
    file.write_bytes(
        {"cut": content[:-9], "flipped": content, "empty": b"", "text": b"x" * 99}[damage]
    )
    assert _prepared(path, caplog) == (first, False)
    assert caplog.text.count("what is remembered of the data is damaged") == 1
    assert _prepared(path, caplog) == (first, True)


def test_without_a_folder_to_write_nothing_is_remembered(
    path: Path, memory: Path, caplog: Any
) -> None:
    memory.write_text("a file")
    for _ in range(2):
        caplog.clear()
        load_conversations(path).prepare()
        assert AGAIN not in caplog.text
        assert "is not remembered" in caplog.text


def test_tables_and_packed_files_are_remembered_too(
    path: Path, tmp_path: Path, chat: Any, caplog: Any
) -> None:
    import gzip

    packed = path.with_name("train.jsonl.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    datasets.Dataset.from_list([chat("a", "b")]).save_to_disk(tmp_path / "saved")
    for source in (packed, tmp_path / "saved"):
        first, _ = _prepared(source, caplog)
        assert _prepared(source, caplog) == (first, True)


def test_the_folder_follows_the_environment(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLSI_CACHE_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load_conversations(path).prepare()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    load_conversations(path).prepare()
    for folder in (tmp_path / "xdg", tmp_path / ".cache"):
        assert len(list((folder / "vlsi-cache" / "data").iterdir())) == 1


def test_rows_keep_no_place_in_the_memory(memory: Path, write_rows: Any, chat: Any) -> None:
    load_conversations(write_rows([chat(json.dumps(n), "b") for n in range(500)])).prepare()
    (file,) = (memory / "data").iterdir()
    assert file.stat().st_size < 2000


def test_a_remembered_file_that_is_replaced_is_not_read_at_its_old_places(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"

    def write(words: Sequence[str]) -> None:
        fresh = tmp_path / "fresh"
        rows = [json.dumps({"prompt": "?", "completion": word}) for word in words]
        fresh.write_text("\n".join(rows) + "\n", encoding="utf-8")
        fresh.replace(path)

    write(["aaaa", "bbbb"])
    load_data(DataSection(path=str(path))).prepare()
    data = load_data(DataSection(path=str(path)))
    data.prepare()
    write(["cccc", "dddd"])
    with pytest.raises(DataError, match="has changed since it was opened"):
        data[0]
