"""The words for what a file holds."""

from __future__ import annotations

import gzip
import io
import json
import sqlite3
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from support.lostfiles import LOST
from vlsi_cache.contents import find_contents, find_link, recognise


@pytest.mark.parametrize("words", LOST)
def test_what_is_saved_in_place_of_a_file_is_named(words: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(LOST[words])
    found = find_contents(tmp_path / "file")
    assert (found.kind, found.words) == ("not the file", words)


def _write(path: Path, kind: str) -> None:
    table = pyarrow.table({"a": [1, 2]})
    match kind:
        case "gzip":
            path.write_bytes(gzip.compress(b"text"))
        case "a zip archive":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("a.txt", "text")
        case "a tar archive":
            with tarfile.open(path, "w") as archive:
                archive.addfile(tarfile.TarInfo("a"), io.BytesIO())
        case "Parquet":
            pyarrow.parquet.write_table(table, path)
        case "Arrow":
            with pyarrow.ipc.new_stream(path, table.schema) as stream:
                stream.write_table(table)
        case "a NumPy array":
            with path.open("wb") as file:
                np.save(file, np.zeros(3))
        case "a pickle of Python or PyTorch":
            torch.save({"a": torch.zeros(3)}, path)
        case "safetensors":
            save_file({"a": np.zeros(3)}, path)
        case "a PNG picture":
            Image.new("RGB", (4, 4)).save(path, "png")
        case "an SQLite database":
            with sqlite3.connect(path) as database:
                database.execute("CREATE TABLE a (b)")
            database.close()


@pytest.mark.parametrize(
    "kind",
    [
        "gzip",
        "a zip archive",
        "a tar archive",
        "Parquet",
        "Arrow",
        "a NumPy array",
        "a pickle of Python or PyTorch",
        "safetensors",
        "a PNG picture",
        "an SQLite database",
    ],
)
def test_real_files_of_other_kinds_are_recognised(kind: str, tmp_path: Path) -> None:
    _write(tmp_path / "file", kind)
    found = find_contents(tmp_path / "file")
    assert (found.kind, found.words) == ("another kind", kind)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_text_is_recognised(encoding: str) -> None:
    text = json.dumps({"a": 1}).encode(encoding)
    assert recognise(text, len(text)).kind == "wide text"


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "404",
        '{"message": {"role": "user"}}',
        '{"error": 1}',
        '{"messages": [], "error": "not found"}',
        "{{ messages[0].content }}",
        "Not all who wander are lost.\nNot found.\n",
        "日本語",
        "\ufeff{}",
        " \n",
        "Ünïcödé \x0c\t",
    ],
)
def test_ordinary_text_is_text(text: str) -> None:
    content: Any = text.encode()
    assert recognise(content, len(content)).kind == "text"


def test_bytes_without_a_kind_are_not_text() -> None:
    content = bytes(range(256)) * 4
    assert recognise(content, len(content)).kind == "binary"
    assert recognise(b"", 0).kind == "empty"


def test_what_stands_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("absent")
    assert find_link(tmp_path / "link") == "a link to absent, which is not there"
    assert find_link(tmp_path) == "a folder"
    assert find_link(tmp_path / "absent") is None
