"""Damaged data files: each is named with what it holds, where, and how to mend it."""

from __future__ import annotations

import gzip
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from support.lostfiles import LFS_POINTER, LOST
from vlsi_cache.data import load_conversations
from vlsi_cache.errors import DataError

_NUM_ROWS = 60


@pytest.fixture
def rows(chat: Any) -> list[dict[str, Any]]:
    return [chat(f"What is {number}?", f"It is {number}.") for number in range(_NUM_ROWS)]


@pytest.fixture
def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.fixture
def table(rows: list[dict[str, Any]], tmp_path: Path) -> bytes:
    """A Parquet file of three groups of rows."""
    path = tmp_path / "sound.parquet"
    datasets.Dataset.from_list(rows).to_parquet(str(path), batch_size=20)
    content = path.read_bytes()
    path.unlink()
    return content


@pytest.fixture
def saved(rows: list[dict[str, Any]], tmp_path: Path) -> Path:
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def _refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_conversations(path).validate()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".jsonl.gz", ".jsonl.zst", ".parquet"])
@pytest.mark.parametrize("words", LOST)
def test_what_stands_in_a_data_files_place_is_named(
    words: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(LOST[words])
    error = _refused(path)
    assert error.startswith(f"{path}: file is not ")
    assert f", but {words}. " in error


def test_a_lost_file_is_named_before_its_suffix_is(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(LFS_POINTER)
    assert "a git-lfs pointer" in _refused(path)
    path.write_bytes(b"question,answer\n1,2\n")
    assert "Dataset.from_csv" in _refused(path)


@pytest.mark.parametrize("cut", [1, 20, 70])
def test_a_file_of_lines_that_is_cut_off_says_so_in_its_last_line(
    cut: int, lines: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines[: -1 - cut])
    error = _refused(path)
    assert f"rows.jsonl:{_NUM_ROWS}: line is not JSON" in error
    assert "Copy or download it again: the file ends before its JSON does." in error
    # a slip in a line that is whole has another cure
    broken = lines.splitlines(keepends=True)
    broken[3] = broken[3][: -1 - cut] + b"\n"
    path.write_bytes(b"".join(broken))
    error = _refused(path)
    assert "rows.jsonl:4: line is not JSON" in error
    assert "Copy or download" not in error


@pytest.mark.parametrize("cut", [1, 25, 300])
def test_an_array_that_is_cut_off_says_so(
    cut: int, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows, indent=1)[:-cut])
    assert "the file ends before its JSON does" in _refused(path)


def test_bytes_that_were_never_written_are_counted(lines: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines + bytes(4096))
    assert f"rows.jsonl:{_NUM_ROWS + 1}: " in _refused(path)
    assert "found 4,096 NUL bytes. Copy the file again" in _refused(path)
    path.write_bytes(lines[:300] + bytes(200) + lines[500:])
    assert "found 200 NUL bytes" in _refused(path)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.bz2", ".jsonl.xz", ".jsonl.zst"])
def test_text_under_the_suffix_of_a_compression_is_named(
    suffix: str, lines: bytes, tmp_path: Path
) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(lines)
    assert "but text. Take the suffix off its name." in _refused(path)


def test_a_cut_compressed_file_says_how_far_it_can_be_read(lines: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(lines)[:-30])
    assert "content is cut off, after " in _refused(path)
    assert "Copy or download it again." in _refused(path)


def test_a_compressed_file_of_another_kind_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(LFS_POINTER))
    assert f"{path}: file is not data, but a git-lfs pointer" in _refused(path)


def test_pictures_and_other_kinds_under_a_suffix_of_text_are_named(
    table: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    assert "file is not text, but a PNG picture" in _refused(path)
    path.write_bytes(table)
    assert "file is not text, but Parquet. Name it .parquet." in _refused(path)
    path.write_bytes(bytes(range(256)) * 4)
    assert "file is not data, but bytes that are not text" in _refused(path)


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").symlink_to(tmp_path / "gone.jsonl")
    error = _refused(tmp_path / "data" / "train.jsonl")
    assert "gone.jsonl, which is not there" in error


def _cut(table: bytes) -> bytes:
    return table[:-30]


def _noise(table: bytes) -> bytes:
    """Overwrite the answers of the second group of rows."""
    group = pyarrow.parquet.read_metadata(io.BytesIO(table)).row_group(1)
    begin = group.column(1).dictionary_page_offset
    return table[:begin] + b"\xff" * 100 + table[begin + 100 :]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_cut, "file is cut off; expected PAR1, the mark of Parquet, at its end"),
        (_noise, "file is damaged in column messages of rows 20 to 39; found "),
        (lambda _: b"", "file is not Parquet, but an empty file"),
        (lambda _: LFS_POINTER, "file is not Parquet, but a git-lfs pointer"),
        (gzip.compress, "file is not Parquet, but gzip. Unpack it"),
    ],
)
@pytest.mark.parametrize("layout", ["file", "folder", "pattern"])
def test_the_damaged_one_of_several_tables_is_named_with_its_rows(
    layout: str, damage: Callable[[bytes], bytes], words: str, table: bytes, tmp_path: Path
) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "a.parquet").write_bytes(table)
    (folder / "b.parquet").write_bytes(damage(table))
    path = {"file": folder / "b.parquet", "folder": folder, "pattern": folder / "*.parquet"}[layout]
    error = _refused(path)
    assert error.startswith(f"{folder}/b.parquet: {words}")


def test_the_library_does_not_speak_before_the_error_does(
    table: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.parquet").write_bytes(_cut(table))
    logger = logging.getLogger("datasets")
    logger.addHandler(caplog.handler)
    try:
        _refused(tmp_path)
    finally:
        logger.removeHandler(caplog.handler)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def _arrow(folder: Path) -> Path:
    (path,) = folder.glob("*.arrow")
    return path


def _in_batches(folder: Path) -> None:
    """Write the table again in batches of 20 rows, of which the last one is cut."""
    path = _arrow(folder)
    with pyarrow.ipc.open_stream(path) as stream:
        table = stream.read_all()
    with pyarrow.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table, max_chunksize=20)
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("damage", "name", "words"),
    [
        (_in_batches, ".arrow", "file is damaged after 40 rows"),
        (lambda folder: _arrow(folder).write_bytes(LFS_POINTER), ".arrow", "not Arrow, but a git"),
        (lambda folder: _arrow(folder).write_bytes(b""), ".arrow", "not Arrow, but an empty file"),
        (lambda folder: _arrow(folder).unlink(), ".arrow", "file is missing"),
        (lambda folder: (folder / "state.json").write_bytes(b""), "state.json", "an empty file"),
        (
            lambda folder: (folder / "state.json").write_bytes(b"{"),
            "state.json",
            "file is not JSON",
        ),
        (
            lambda folder: (folder / "dataset_info.json").write_bytes(b"[]"),
            "dataset_info.json",
            "expected a JSON object; found a list",
        ),
        (
            lambda folder: (folder / "dataset_info.json").unlink(),
            "dataset_info.json",
            "file is missing",
        ),
    ],
)
@pytest.mark.parametrize("layout", ["alone", "splits"])
def test_the_damaged_file_of_a_saved_folder_is_named(
    layout: str,
    damage: Callable[[Path], object],
    name: str,
    words: str,
    saved: Path,
    tmp_path: Path,
) -> None:
    folder = part = saved
    if layout == "splits":
        folder = tmp_path / "splits"
        splits = {"test": datasets.load_from_disk(str(saved)), "train": _rows_of(saved)}
        datasets.DatasetDict(splits).save_to_disk(str(folder))
        part = folder / "train"
    damage(part)
    error = _refused(folder)
    assert error.startswith(f"{part}/")
    assert f"{name}: " in error
    assert words in error


def _rows_of(saved: Path) -> Any:
    return datasets.Dataset.from_list(datasets.load_from_disk(str(saved)).to_list())
