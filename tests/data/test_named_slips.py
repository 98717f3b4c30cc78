"""Slips in the names of data, in images and in parts: each is named with what mends it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from support.lostfiles import LOST
from vlsi_cache.data import load_conversations
from vlsi_cache.errors import DataError

Read = Callable[..., Any]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads one row about a picture, ``a b.png``, that lies beside it."""
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a b.png")

    def made(content: object = "<image>What?", **columns: object) -> Any:
        turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "red"}]
        (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns, **columns}) + "\n")
        (sample,) = load_conversations(tmp_path / "rows.jsonl")
        return sample

    return made


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (" ", "the name of the data is empty"),
        ("-", "data is not read from a pipe. Write it into a file."),
        ("'rows.jsonl'", "has blanks or quotes around it. Give rows.jsonl."),
        ("rows.jsonl ", "has blanks or quotes around it. Give rows.jsonl."),
        ("C:\\data\\rows.jsonl", "this is a path of Windows"),
        ("C:/data/rows.jsonl", "this is a path of Windows"),
        ("$HOME/rows.jsonl", "variables of the shell are not replaced"),
        ("a.jsonl,b.jsonl", "several files are given as a list. Set data.path to [a.jsonl, b.jso"),
    ],
)
def test_a_slip_in_the_name_of_data_has_its_line(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for letter in "ab":
        (tmp_path / f"{letter}.jsonl").write_text("{}\n")
    with pytest.raises(DataError) as caught:
        load_conversations(name)
    assert words in str(caught.value)


def test_a_pipe_in_a_folder_of_data_is_refused(read: Read, tmp_path: Path) -> None:
    read("What?")
    (tmp_path / "data").mkdir()
    (tmp_path / "rows.jsonl").rename(tmp_path / "data" / "part-1.jsonl")
    os.mkfifo(tmp_path / "data" / "part-2.jsonl")
    with pytest.raises(DataError, match=r"part-2.jsonl: data is neither a file nor a folder"):
        load_conversations(tmp_path / "data")


@pytest.mark.parametrize("words", LOST)
def test_what_stands_in_an_images_place_is_named(words: str, read: Read, tmp_path: Path) -> None:
    (tmp_path / "lost.png").write_bytes(LOST[words])
    (image,) = read(images=["lost.png"]).images
    with pytest.raises(DataError) as caught:
        image.load()
    assert f"image cannot be decoded; found {words}. " in str(caught.value)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a%20b.png", "a file a b.png, whose name is quoted here as in an address"),
        ("folder", "a folder"),
        ("link.png", "a link to nothing"),
        ("gone.png", None),
        ("100%.png", None),
    ],
)
def test_what_stands_where_an_image_is_missing_is_named(
    name: str, found: str | None, read: Read, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.png").symlink_to("nowhere.png")
    read(images=[name])
    with pytest.raises(DataError, match="image file is missing") as caught:
        load_conversations(tmp_path / "rows.jsonl").validate()
    assert caught.value.found == found


@pytest.mark.parametrize(
    "columns",
    [
        {"images": '["a b.png"]'},
        {"image": ' [{"path": "a b.png"}] '},
        {"images": '["a b.png"]', "videos": "[]", "audios": "[]"},
    ],
)
def test_a_list_of_images_may_be_a_text_of_json(columns: dict[str, str], read: Read) -> None:
    (image,) = read(**columns).images
    assert image.load().size == (8, 8)


def test_an_empty_list_of_images_may_be_a_text_of_json(read: Read) -> None:
    assert read("What?", images="[]").images == ()


def test_a_file_whose_name_looks_like_a_list_is_a_file(read: Read, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "[a].png")
    (image,) = read(images="[a].png").images
    assert image.load().size == (4, 4)
    Image.new("RGB", (5, 5)).save(tmp_path / "[a]", "png")
    (image,) = read(images="[a]").images
    assert image.load().size == (5, 5)


@pytest.mark.parametrize("kind", ["video", "video_url", "audio", "input_audio", "file", "document"])
def test_a_part_of_another_medium_says_what_is_read(kind: str, read: Read) -> None:
    with pytest.raises(DataError, match="Videos, sounds and files are not read") as caught:
        read([{"type": kind, kind: "a.mp4"}, {"type": "text", "text": "What?"}])
    assert "unknown part of a message" in str(caught.value)


def test_numbered_columns_beside_an_image_are_refused(read: Read) -> None:
    with pytest.raises(DataError, match=r"numbered columns hold .*; found image_2"):
        read(image="a b.png", image_2="a b.png")
    with pytest.raises(DataError, match="found image_1, image_2"):
        read("What?", images=["a b.png"], image_1="a b.png", image_2="b.png")
    for other in (None, 7, "a circle"):
        assert len(read(image="a b.png", image_2=other).images) == 1
