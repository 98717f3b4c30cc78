"""Names in cards: those of the hub stay, all others lose folders, buckets and credentials."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlsi_cache.recipe import DataSection, recipe_from_mapping
from vlsi_cache.recipe.publicnames import (
    hub_name,
    public_name,
    public_settings,
    public_source,
)
from vlsi_cache.student.card import public_data


@pytest.mark.parametrize(
    "name",
    [
        *("data/*.jsonl", "data/train.jsonl", "data/part-?", "C:/x", "C:x", r"C:\x\y", r"data\x"),
        *("../x", "~/x", "/srv/x", "a/b/c", "owner/{a,b}", "owner/na me", "s3://bucket/x", ""),
        *("owner/rows.parquet", "train.JSONL", "-owner/name", "owner/..", "a--b/c"),
    ],
)
def test_what_has_not_the_form_of_a_hub_name_is_local(name: str) -> None:
    assert hub_name(name) is None


def test_hub_names_stay_unless_something_here_has_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hub_name("Qwen/Qwen2.5-VL-3B") == public_name("Qwen/Qwen2.5-VL-3B")
    assert hub_name("owner/data:config") == "owner/data"
    assert hub_name("gpt2") == "gpt2"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clients" / "one").mkdir(parents=True)
    assert hub_name("clients/one") is None
    assert public_name("clients/two") == "two"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("s3://key:secret@bucket", "bucket"),
        ("s3://key:sec/ret@bucket", "bucket"),
        ("s3://key:secret@bucket/a/b.jsonl?sig=secret", "b.jsonl"),
        ("https://host/rows.jsonl?token=secret#secret", "rows.jsonl"),
        ("https://huggingface.co/me/x?token=secret", "https://huggingface.co/me/x"),
        ("hf://datasets/me/x@main", "hf://datasets/me/x@main"),
        ("https://secret@huggingface.co/me/x", "https://huggingface.co/me/x"),
        (r"D:\secret\x.jsonl", "x.jsonl"),
        ("data/secret/*.jsonl", "*.jsonl"),
    ],
)
def test_addresses_lose_what_may_be_secret(name: str, shown: str) -> None:
    assert public_name(name) == shown


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("/c/a.jsonl × 2, data/b.jsonl", "a.jsonl × 2, b.jsonl"),
        ("/c/a.jsonl /c/b.jsonl × 0.5, me/x:en", "a.jsonl b.jsonl × 0.5, me/x:en"),
        ("/c/client x/a.jsonl", "a.jsonl"),
        ("/home/Smith, John/a.jsonl", "a.jsonl"),
        ("s3://k:s@b/a.jsonl, s3://k:s@b/c.jsonl", "a.jsonl, c.jsonl"),
    ],
)
def test_each_of_several_sources_is_named(source: str, shown: str) -> None:
    assert public_source(source) == shown


def test_a_student_names_its_data_from_the_recipe() -> None:
    sources = [{"path": ["/c/one", "/c/two, x"], "weight": 2}, {"path": "me/x"}]
    recipe = recipe_from_mapping({"data": {"sources": sources}}, where="test")
    assert public_data(recipe.data) == "one two, x × 2, me/x"
    assert public_data(DataSection(path="/c/client x/a.jsonl")) == "a.jsonl"


def test_settings_have_neither_paths_nor_credentials() -> None:
    settings = {
        "cache": {"path": "s3://key:secret@bucket/x"},
        "student": {"processor": {"token": "secret", "pad_token": "<pad>", "size": [1, "/c/x"]}},
    }
    assert public_settings(settings) == {
        "cache": {"path": "x"},
        "student": {"processor": {"pad_token": "<pad>", "size": [1, "x"]}},
    }
