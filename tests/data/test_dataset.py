"""Datasets of every kind read alike, row by row, and have a fingerprint of their content."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from vlsi_cache.data import load_conversations
from vlsi_cache.errors import DataError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the files that `datasets` prepares out of the home folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "prepared")


def image_rows(folder: Path) -> list[dict[str, Any]]:
    names = ["red.png", "blue.jpg"]
    return [
        {
            "id": f"row-{number}",
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": name}]},
            ],
            "images": [name],
        }
        for number, name in enumerate(names)
    ]


def arrow_dataset(folder: Path) -> datasets.Dataset:
    rows = image_rows(folder)
    for row in rows:
        row["images"] = [Image.open(folder / name) for name in row["images"]]
        for image in row["images"]:
            image.load()
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "messages": datasets.List(
                {
                    "role": datasets.Value("string"),
                    "content": datasets.List(
                        {"type": datasets.Value("string"), "text": datasets.Value("string")}
                    ),
                }
            ),
            "images": datasets.List(datasets.Image()),
        }
    )
    return datasets.Dataset.from_list(rows, features=features)


def test_rows_without_an_id_are_numbered_and_blank_lines_do_not_count(
    write_rows: Any, chat: Any
) -> None:
    dataset = load_conversations(write_rows(["", chat("a", "b"), "", chat("c", "d")]))
    assert [sample.sample_id for sample in dataset] == ["0", "1"]
    assert [sample.origin for sample in dataset] == ["train.jsonl:2", "train.jsonl:4"]
    assert len(dataset) == 2
    assert dataset[-1].messages[0].text == "c"
    assert [sample.sample_id for sample in dataset[1:]] == ["1"]
    with pytest.raises(IndexError):
        dataset[2]


def test_a_json_array_reads_like_lines(write_rows: Any, chat: Any, folder: Path) -> None:
    rows = [chat("Größe?", 'a "quoted" ]'), chat("c", "d")]
    lines = load_conversations(write_rows(rows))
    (folder / "train.json").write_text(json.dumps(rows, indent=2, ensure_ascii=False))
    array = load_conversations(folder / "train.json")
    assert array.fingerprint() == lines.fingerprint()
    assert array[0].messages[0].text == "Größe?"
    assert array[0].origin == "train.json:2"
    assert array[1].origin == "train.json:14"
    windows = json.dumps(rows, indent=2, ensure_ascii=False).replace("\n", "\r\n")
    (folder / "windows.json").write_bytes(windows.encode())
    assert load_conversations(folder / "windows.json").fingerprint() == lines.fingerprint()


def test_a_file_in_another_encoding_is_refused(folder: Path) -> None:
    (folder / "latin.json").write_bytes('[{"a": "Größe"}]'.encode("latin-1"))
    with pytest.raises(DataError, match=r"latin.json: file is not UTF-8"):
        load_conversations(folder / "latin.json")


def test_a_limit_keeps_the_first_rows(write_rows: Any, chat: Any) -> None:
    path = write_rows([chat(text, text) for text in "abc"])
    assert len(load_conversations(path, limit=2)) == 2
    assert len(load_conversations(path, limit=9)) == 3
    two = load_conversations(write_rows([chat(text, text) for text in "ab"], "two.jsonl"))
    assert load_conversations(path, limit=2).fingerprint() == two.fingerprint()
    with pytest.raises(DataError, match="limit is not positive"):
        load_conversations(path, limit=0)


def test_a_fingerprint_follows_content_and_order_alone(
    write_rows: Any, folder: Path, chat: Any
) -> None:
    row = {**chat("<image>a", "b"), "images": ["red.png"]}
    first = load_conversations(write_rows([row, chat("c", "d")])).fingerprint()
    assert (
        load_conversations(write_rows([row, chat("c", "d")], "copy.jsonl")).fingerprint() == first
    )
    turned = load_conversations(write_rows([chat("c", "d"), row], "turned.jsonl"))
    assert turned.fingerprint() != first
    Image.new("RGB", (32, 32), "green").save(folder / "red.png")
    assert load_conversations(folder / "train.jsonl").fingerprint() != first


def test_validation_finds_a_missing_image_without_decoding_any(
    write_rows: Any, chat: Any, folder: Path
) -> None:
    (folder / "noise.png").write_bytes(b"no image")
    rows = [{**chat("<image>a", "b"), "image": name} for name in ("noise.png", "gone.png")]
    with pytest.raises(DataError, match=r"train.jsonl:2, .*gone\.png: image file is missing"):
        load_conversations(write_rows(rows)).validate()
    load_conversations(write_rows(rows[:1], "one.jsonl")).validate()


def test_a_dataset_pickles_by_reference_to_its_file(write_rows: Any, chat: Any) -> None:
    dataset = load_conversations(write_rows([chat("a" * 10_000, "b"), chat("c", "d")]))
    assert dataset[1].messages[0].text == "c"
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 5_000
    assert pickle.loads(pickled)[1] == dataset[1]


def test_saved_folders_and_parquet_read_like_lines(write_rows: Any, folder: Path) -> None:
    arrow = arrow_dataset(folder)
    arrow.save_to_disk(str(folder / "saved"))
    datasets.DatasetDict({"train": arrow, "test": arrow.select([0])}).save_to_disk(
        str(folder / "splits")
    )
    (folder / "parquet").mkdir()
    arrow.to_parquet(str(folder / "parquet" / "train-00000-of-00001.parquet"))
    arrow.to_parquet(str(folder / "one.parquet"))
    expected = [sample.sample_id for sample in load_conversations(write_rows(image_rows(folder)))]
    keys = None
    for name in ("saved", "splits", "parquet", "one.parquet"):
        dataset = load_conversations(folder / name)
        dataset.validate()
        assert [sample.sample_id for sample in dataset] == expected
        assert [sample.images[0].load().size for sample in dataset] == [(32, 32), (48, 24)]
        keys = keys or dataset.fingerprint()
        assert dataset.fingerprint() == keys
        assert pickle.loads(pickle.dumps(dataset))[1] == dataset[1]
    assert len(load_conversations(folder / "splits", split="test")) == 1


def test_images_inside_parts_are_read_from_arrow(folder: Path) -> None:
    features = datasets.Features(
        {
            "messages": datasets.List(
                {
                    "role": datasets.Value("string"),
                    "content": datasets.List(
                        {
                            "type": datasets.Value("string"),
                            "text": datasets.Value("string"),
                            "image": datasets.Image(),
                        }
                    ),
                }
            )
        }
    )
    part = {"type": "image", "text": None, "image": str(folder / "red.png")}
    text = {"type": "text", "text": "What?", "image": None}
    rows = [
        {
            "messages": [
                {"role": "user", "content": [part, text]},
                {"role": "assistant", "content": [{**text, "text": "red"}]},
            ]
        }
    ]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(folder / "saved"))
    (sample,) = load_conversations(folder / "saved")
    assert sample.images[0].load().getpixel((0, 0)) == (255, 0, 0)


def test_a_folder_of_lines_is_read_by_split(write_rows: Any, chat: Any, folder: Path) -> None:
    write_rows([chat("a", "b")], "test.jsonl")
    assert load_conversations(folder, split="test")[0].origin == "test.jsonl:1"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("gone.jsonl", None, "there is no such data file or folder"),
        ("gone/train", None, "there is no such data file or folder"),
        ("data.csv", "a,b", "unknown kind of data file"),
        ("empty.jsonl", "", "data file is empty"),
        ("empty.json", "[]", "data file is empty"),
        ("blank.jsonl", "\n \n", "data file is empty"),
        ("bad.json", '[{"a": 1},\n{"b": }]', "bad.json:2: file is not a JSON array"),
        ("cut.json", '[{"a": 1}', "cut.json:1: file is not a JSON array.*the end of the file"),
        ("bad.parquet", "no parquet", "file is not Parquet, but text"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused_in_one_line(
    name: str, content: str | None, problem: str, folder: Path
) -> None:
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(DataError, match=problem) as caught:
        load_conversations(folder / name)
    assert "\n" not in str(caught.value)


def test_a_missing_split_is_refused_with_the_existing_ones(folder: Path) -> None:
    arrow = arrow_dataset(folder)
    datasets.DatasetDict({"train": arrow, "test": arrow}).save_to_disk(str(folder / "splits"))
    with pytest.raises(DataError, match="no such split; expected one of train, test; found dev"):
        load_conversations(folder / "splits", split="dev")


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="folder holds no dataset"):
        load_conversations(tmp_path)


def test_an_unreachable_hub_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="no-such-owner/no-such-data: dataset cannot be loaded"):
        load_conversations("no-such-owner/no-such-data")


def test_damage_in_a_saved_folder_is_one_error_or_harmless(folder: Path) -> None:
    arrow_dataset(folder).remove_columns("images").save_to_disk(str(folder / "saved"))
    (path,) = (folder / "saved").glob("*.arrow")
    sound = path.read_bytes()
    assert _outcome(folder / "saved") == "placeholders and images differ in number"
    generator = np.random.default_rng(3)
    for _ in range(25):
        content = bytearray(sound)
        for position in generator.integers(0, len(content), 4):
            content[position] ^= int(generator.integers(1, 256))
        path.write_bytes(content)
        assert "\n" not in _outcome(folder / "saved")
    for length in (len(sound) // 2, len(sound) - 8, len(sound) - 1):
        path.write_bytes(sound[:length])
        assert _outcome(folder / "saved").startswith(("file is cut off", "file is damaged after"))


def _outcome(path: Path) -> str:
    try:
        load_conversations(path).validate()
    except DataError as error:
        return error.what
    return "sound"
