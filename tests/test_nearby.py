"""A path that is not there leads to the one that is meant, and to no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlsi_cache.nearby import find_near, nothing_at, perhaps


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in ("teacher", "student-base", "data/pictures", "Qwen2.5-VL", "modèles bons/petit"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("data/train.jsonl", "data/test.jsonl", "rows.jsonl", "teacher.txt"):
        (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("teachr", "teacher"),
        ("./Teacher", "teacher"),
        ("dta/trian.jsonl", "data/train.jsonl"),
        ("data/train.json", "data/train.jsonl"),
        ("data/train", "data/train.jsonl"),
        ("data/../data/tets.jsonl", "data/../data/test.jsonl"),
        ("modeles bons/petit", "modèles bons/petit"),
        ("Qwen2.5-V", "Qwen2.5-VL"),
        ("absent.jsonl", None),
        ("data/absent.jsonl", None),
        ("nowhere/at/all", None),
        ("x" * 5000, None),
        ("a\0b", None),
        ("", None),
    ],
)
def test_names_that_are_nearly_right_are_found(typed: str, meant: str | None, here: Path) -> None:
    assert find_near(typed) == meant
    whole = find_near(here / typed)
    assert whole == (None if meant is None else str(here / meant)) or not typed


def test_a_folder_is_not_a_file(here: Path) -> None:
    assert find_near("teacher.tx") == "teacher.txt"
    assert find_near("teacher.tx", folder=True) == "teacher"
    assert find_near("row", folder=True) is None
    assert perhaps("row.jsonl", "Give a file") == "Perhaps rows.jsonl is meant"
    assert perhaps("row", "Give a folder", folder=True) == "Give a folder"


def test_the_folder_that_lacks_a_path_is_said(here: Path) -> None:
    assert nothing_at("gone/deep/x.jsonl") == f"no gone in {here}"
    assert nothing_at("data/gone.jsonl") == f"no gone.jsonl in {here / 'data'}"
    assert nothing_at("/no-such-root/x") == "no no-such-root in /"
