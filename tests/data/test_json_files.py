"""Every byte of a JSON file is read, or the file is refused with a place in it."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import pickle
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from vlsi_cache.data import load_conversations
from vlsi_cache.errors import DataError


def texts(path: Path) -> list[str]:
    return [sample.messages[0].text for sample in load_conversations(path)]


@pytest.fixture
def rows(chat: Any) -> list[str]:
    return [json.dumps(chat(text, text)) for text in "abcd"]


def zstandard(data: bytes) -> bytes:
    packed: bytes = pyarrow.Codec("zstd").compress(data, asbytes=True)
    return packed


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": partial(gzip.compress, mtime=0),  # else a test has another name each second
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard,
}


@pytest.mark.parametrize(
    "layout",
    [
        "[{0}, {1}]\n[{2}, {3}]\n",
        "[{0}, {1}][{2}][]\n\n[{3}]",
        "[{0},\r\n{1},\r\n{2},{3},]\r\n",
        "\ufeff[{0}, {1}, {2}, {3}]",
        "[{0}, {1}]\n\ufeff[{2}, {3}]",
        "{0}\n\n{1}\r\n{2}\n \t\n{3}",
        "\ufeff{0}\n{1}\n{2}\n{3}\n",
        "{0}\n{1}\n\ufeff{2}\n{3}\n",
        "\n\ufeff{0}\n{1}\n{2}\n{3}\n\n",
    ],
)
def test_all_rows_of_a_file_are_read(layout: str, rows: list[str], folder: Path) -> None:
    path = folder / "rows.json"
    pieces = {str(number): row for number, row in enumerate(rows)}
    text = layout
    for number, row in pieces.items():
        text = text.replace(f"{{{number}}}", row)
    path.write_bytes(text.encode())
    assert texts(path) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[{0}]\ntail", r"rows.json:2: text follows the array.*'tail' at byte \d+"),
        ("[{0}] {0}", r"rows.json:1: text follows the array.*another array"),
        ("[{0}],\n[{0}]", r"rows.json:1: text follows the array; .*at byte"),
        ("[{0}]\n[{0}", r"rows.json:2: file is not a JSON array.*the end of the file"),
        ("[{0} {0}]", "rows.json:1: file is not a JSON array"),
        ("[{0},,{0}]", "rows.json:1: file is not a JSON array"),
        ("{0}{0}\n", "rows.json:1: line is not JSON .Extra data"),
        ("{0}\n{0},\n", "rows.json:2: line is not JSON .Extra data"),
        ('{0}\n{"messages": [{"role"', "rows.json:2: line is not JSON"),
        ("{0}\n{0}\0\n", "rows.json:2: line is not JSON"),
        ("{0}\n[{0}]\n", "rows.json:2: row is not a JSON object"),
        ('{\n  "messages": []\n}\n', "rows.json:1: messages is empty"),
        ('{0}\n{"id": 1 "a"}\n', r"rows.json:2: .*',' delimiter at line 2, column 10\)"),
        (
            '[{0},\n {"id": 1 "a"}]',
            r"rows.json:2: .*',' delimiter at line 2, column 11\)",
        ),
        (
            '[{0},\n {"a": 1, "a": 2}]',
            "rows.json:2: .*the key 'a' is given twice",
        ),
        (
            '{\n "id": 1,\n "b" 2\n}\n',
            r"rows.json:3: .*':' delimiter at line 3, column 6",
        ),
        ("{0},\n{0},\n", "rows.json:1: .*column .*Take the comma at the end of the line out"),
        ("{0}\n{'messages': []}\n", "rows.json:2: .*with json.dumps"),
        ('{0}\n{"messages": []\n', "rows.json:2: .*found the end of the line"),
        (
            '{0}\n{"messages": [],}\n',
            "rows.json:2: .*Take the comma before the closing",
        ),
        ('{\n"train": [{0}],\n"test": [{0}]\n}', r"lists in train, test\. .*jq -c '\.train\[\]'"),
        ('{"images": [{"id": 1}], "labels": [{"id": 2}]}', "lists in images, labels"),
        ('{"a": {0}, "b": {0}}', r"a row under each key; found 2 keys\. .*jq -c '\.\[\]'"),
        ('{"data": [{0}, {"id": 1 "a"}]}', "rows.json:1: line is not JSON .*column 109"),
        ('{0}\n{"a": ' + "[" * 100_000, "rows.json:2: line is not JSON"),
        ("[{0}, " + "[" * 100_000, "rows.json:1: file is not a JSON array"),
        ('{"id": "a", "id": "b"}\n', "the key 'id' is given twice"),
        ('{"role": "user", "content": "a"}\n', "row is not a conversation.*into a list"),
    ],
)
def test_what_is_not_read_is_refused_with_its_line(
    content: str, problem: str, rows: list[str], folder: Path
) -> None:
    (folder / "rows.json").write_text(content.replace("{0}", rows[0]))
    with pytest.raises(DataError, match=problem) as caught:
        load_conversations(folder / "rows.json").validate()
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("layout", "key"),
    [
        ('{"data": [{0}, {1}, {2}, {3}]}', "data"),
        (
            '{\n  "version": "1.0",\n  "conversations": [\n{0},\n{1},{2},{3}\n]\n}\n',
            "conversations",
        ),
        ('{"n": {"data": [1]}, "train": [{0}, {1}, {2}, {3}], "tags": [{"text": 1}]}', "train"),
        ('\ufeff {"data" : [ {0}, {1}, {2}, {3} ] } ', "data"),
    ],
)
def test_the_list_inside_a_files_only_object_is_read(
    layout: str, key: str, rows: list[str], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / "rows.json"
    for number, row in enumerate(rows):
        layout = layout.replace(f"{{{number}}}", row)
    path.write_text(layout, encoding="utf-8")
    with caplog.at_level("INFO"):
        assert texts(path) == ["a", "b", "c", "d"]
    assert f"rows.json: the rows are read from its key {key}" in caplog.text
    for other in ("version", "n, tags"):
        assert (f"not read: {other}\n" in caplog.text) == (f'"{other[0]}' in layout)


def test_objects_may_go_over_many_lines(rows: list[str], folder: Path) -> None:
    path = folder / "rows.json"
    whole = [json.dumps(json.loads(row), indent=2) for row in rows]
    path.write_text("\n".join(whole), encoding="utf-8")
    assert texts(path) == ["a", "b", "c", "d"]
    assert load_conversations(path)[1].origin == f"rows.json:{whole[0].count(chr(10)) + 2}"
    path.write_text(whole[2], encoding="utf-8")
    assert texts(path) == ["c"]


def test_a_broken_first_line_costs_no_other(rows: list[str], folder: Path) -> None:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(['{"messages": [', *rows]), encoding="utf-8")
    dataset = load_conversations(path)
    assert len(dataset) == 5
    assert dataset[4].messages[0].text == "d"


def test_a_key_that_repeats_its_value_loses_nothing(rows: list[str], folder: Path) -> None:
    (folder / "rows.jsonl").write_text(rows[0][:-1] + ', "id": "x", "id": "x"}\n')
    (sample,) = load_conversations(folder / "rows.jsonl")
    assert sample.sample_id == "x"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("layout", ["[{}]", "{}"])
def test_wide_characters_are_refused_by_name(
    encoding: str, layout: str, rows: list[str], folder: Path
) -> None:
    (folder / "rows.json").write_bytes(layout.format(rows[0]).encode(encoding))
    with pytest.raises(DataError, match=r"rows.json: file is not UTF-8, but UTF-16 or UTF-32"):
        load_conversations(folder / "rows.json")


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("gzip", PACKERS["gz"](b"{}")),
        ("bzip2", PACKERS["bz2"](b"{}")),
        ("xz", PACKERS["xz"](b"{}")),
        ("zstd", PACKERS["zst"](b"{}")),
        ("a zip archive", b"PK\x03\x04"),
        ("Parquet", b"PAR1\0\0"),
        ("Arrow", b"ARROW1\0\0"),
    ],
)
def test_a_file_of_another_kind_is_named_in_spite_of_its_suffix(
    kind: str, content: bytes, folder: Path
) -> None:
    (folder / "rows.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=f"rows.jsonl: file is not text, but {kind}"):
        load_conversations(folder / "rows.jsonl")


def test_bytes_that_are_not_utf8_are_refused_with_their_line(rows: list[str], folder: Path) -> None:
    (folder / "rows.jsonl").write_bytes(rows[0].encode() + b'\n{"a": "\xff"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl:2: line is not JSON \('utf-8' codec"):
        load_conversations(folder / "rows.jsonl").validate()


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_compressed_file_reads_like_its_content(
    suffix: str, rows: list[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "unpacked"))
    (tmp_path / "unpacked").mkdir()
    pack = PACKERS[suffix]
    plain = folder / "rows.jsonl"
    plain.write_text("\n".join(rows))
    packed = folder / f"rows.jsonl.{suffix}"
    halves = ["\n".join(rows[:2]) + "\n", "\n".join(rows[2:])]
    packed.write_bytes(b"".join(pack(half.encode()) for half in halves))
    dataset = load_conversations(packed)
    assert dataset.fingerprint() == load_conversations(plain).fingerprint()
    assert dataset[3].origin == f"rows.jsonl.{suffix}:4"
    assert pickle.loads(pickle.dumps(dataset))[3] == dataset[3]
    assert len(list((tmp_path / "unpacked").iterdir())) == 1
    del dataset
    assert list((tmp_path / "unpacked").iterdir()) == []


def test_a_full_folder_of_temporary_files_is_not_the_data_files_problem(
    rows: list[str], folder: Path
) -> None:
    (folder / "rows.jsonl.gz").write_bytes(PACKERS["gz"]("\n".join(rows).encode()))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(DataError, match=r"cannot be unpacked; .*Set TMPDIR to a folder with"):
            load_conversations(folder / "rows.jsonl.gz")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("damage", ["cut", "junk", "noise"])
def test_a_damaged_compressed_file_is_refused(
    suffix: str, damage: str, rows: list[str], folder: Path
) -> None:
    sound = PACKERS[suffix]("\n".join(rows).encode())
    content = {"cut": sound[:-4], "junk": sound + b"junk", "noise": b"no archive"}[damage]
    path = folder / f"rows.jsonl.{suffix}"
    path.write_bytes(content)
    words = "file is not .*, but text" if damage == "noise" else "data file cannot be read; found"
    with pytest.raises(DataError, match=f"rows.jsonl.{suffix}: {words}"):
        load_conversations(path)


@pytest.mark.parametrize("suffix", ["gz", "xz"])
def test_zeros_after_a_stream_are_padding(suffix: str, rows: list[str], folder: Path) -> None:
    path = folder / f"rows.jsonl.{suffix}"
    halves = ["\n".join(rows[:2]) + "\n", "\n".join(rows[2:])]
    path.write_bytes(b"".join(PACKERS[suffix](half.encode()) + bytes(512) for half in halves))
    assert len(load_conversations(path)) == len(rows)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.zip", "a.jsonl.zip", "a.gz", "a.parquet.gz"])
def test_other_files_are_refused_by_the_name_of_their_kind(name: str, folder: Path) -> None:
    (folder / name).write_bytes(b"a,b\n1,2\n")
    suffix = "".join(Path(name).suffixes[-2:])
    with pytest.raises(DataError, match=rf"unknown kind of data file.*found {suffix}"):
        load_conversations(folder / name)


def test_a_pipe_is_refused_at_once(folder: Path) -> None:
    os.mkfifo(folder / "rows.jsonl")
    with pytest.raises(DataError, match="data is neither a file nor a folder"):
        load_conversations(folder / "rows.jsonl")
