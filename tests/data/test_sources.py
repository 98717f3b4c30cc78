"""Names of data: several files, patterns, folders, configurations, and mixtures by weight."""

from __future__ import annotations

import gzip
import json
import logging
import os
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from vlsi_cache.data import load_conversations, load_data
from vlsi_cache.errors import DataError, RecipeError
from vlsi_cache.recipe import DataSection, recipe_from_mapping

Write = Callable[[str, str], Path]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the files that `datasets` prepares out of the home folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / ".prepared")


@pytest.fixture
def write(tmp_path: Path, chat: Any) -> Write:
    """Writes a file of one row for each letter, as lines, an array or a table."""

    def make(name: str, letters: str) -> Path:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [chat(letter, letter) for letter in letters]
        if path.suffix == ".parquet":
            datasets.Dataset.from_list(rows).to_parquet(str(path))
        elif path.suffix == ".gz":
            path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
        elif path.suffix == ".json":
            path.write_text(json.dumps(rows))
        else:
            path.write_text("\n".join(map(json.dumps, rows)))
        return path

    return make


def texts(dataset: Any) -> str:
    return "".join(sample.messages[0].text for sample in dataset)


def test_several_files_are_read_one_after_another(write: Write) -> None:
    paths = [write("b.jsonl", "ab"), write("a.json", "cd"), write("c.parquet", "ef")]
    dataset = load_conversations(paths)
    dataset.validate()
    assert texts(dataset) == "abcdef"
    assert texts(load_data(DataSection(path=[str(path) for path in paths]))) == "abcdef"
    assert [sample.sample_id for sample in dataset] == list("012345")
    origins = [sample.origin for sample in dataset]
    assert origins[1:5] == ["b.jsonl:2", "a.json:1", "a.json:1", "c.parquet[0]"]
    assert pickle.loads(pickle.dumps(dataset))[3] == dataset[3]
    assert dataset.fingerprint() == load_conversations(write("all.jsonl", "abcdef")).fingerprint()


def test_files_of_the_same_name_are_named_with_their_folders(write: Write) -> None:
    paths = [write("one/train.jsonl", "a"), write("two/train.jsonl", "b")]
    assert [sample.origin for sample in load_conversations(paths)] == [
        f"{path}:1" for path in paths
    ]


def test_a_pattern_stands_for_its_files_in_order(write: Write, tmp_path: Path) -> None:
    for name, letters in (("part-2.jsonl", "c"), ("part-1.jsonl", "ab"), ("other.txt", "")):
        write(name, letters)
    write("deep/er/part-3.jsonl", "d")
    write("part-4.jsonl.gz", "e")
    data = tmp_path / "data"
    assert texts(load_conversations(f"{data}/part-*.jsonl")) == "abc"
    assert texts(load_conversations(f"{data}/**/part-?.jsonl")) == "dabc"
    assert texts(load_conversations(f"{data}/part-[24].jsonl*")) == "ce"
    with pytest.raises(DataError, match="no file has a name of this pattern"):
        load_conversations(f"{data}/none-*.jsonl")
    with pytest.raises(DataError, match=r"unknown kind of data file.*\.txt"):
        load_conversations(f"{data}/*.txt")


def test_a_pattern_of_parquet_files_keeps_their_order(write: Write, tmp_path: Path) -> None:
    for name, letters in (("x-2.parquet", "cd"), ("x-1.parquet", "ab"), ("x-10.parquet", "e")):
        write(name, letters)
    assert texts(load_conversations(f"{tmp_path}/data/*.parquet")) == "abecd"
    repeated = [str(tmp_path / "data" / name) for name in ("x-2.parquet", "x-1.parquet")]
    assert texts(load_conversations([*repeated, repeated[0]])) == "cdabcd"


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        (
            pa.table({"prompt": ["c"], "completion": ["d"], "mood": [1]}),
            "files of other columns.*1 new columns.*mood",
        ),
        (pa.table({"prompt": ["c"], "completion": [["d"]]}), "list.* to string"),
        (pa.table({"prompt": pa.array([], pa.string())}), "found a file without rows"),
    ],
)
def test_tables_that_do_not_fit_are_refused_with_the_reason(
    second: Any, problem: str, tmp_path: Path
) -> None:
    for name, table in (("a", pa.table({"prompt": ["a"], "completion": ["b"]})), ("b", second)):
        parquet.write_table(table, tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=f"dataset cannot be loaded.*{problem}") as caught:
        load_conversations(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("files", "split", "expected"),
    [
        ({"part-1.jsonl": "a", "part-2.jsonl": "b"}, "train", "ab"),
        ({"part-1.jsonl": "a", "sub/part-2.json": "b", "part-3.jsonl.gz": "c"}, "train", "acb"),
        ({"train-0.jsonl": "a", "train-1.jsonl": "b", "test.jsonl": "c"}, "train", "ab"),
        ({"train/0.jsonl": "a", "val/0.jsonl": "b"}, "validation", "b"),
        ({"train.jsonl": "a", "val.jsonl": "b"}, "validation", "b"),
        ({"train.jsonl": "a", "dev.json": "b"}, "validation", "b"),
        ({"train.jsonl": "a", "validation.jsonl": "b"}, "val", "b"),
        ({"train.jsonl": "a", "val.jsonl": "b", "validation.jsonl": "c"}, "val", "b"),
        ({"eval.jsonl.gz": "b"}, "test", "b"),
        ({"train_sft.jsonl": "a", "train_rl.jsonl": "b"}, "train_sft", "a"),
        ({"train.parquet": "a", "val.parquet": "b"}, "val", "b"),
        ({"a.parquet": "a", "b.parquet": "b", "c.json": "c", "d.json": "d"}, "train", "ab"),
        ({"train.jsonl": "a", "dataset_infos.json": "x"}, "train", "a"),
    ],
)
def test_a_folder_is_read_by_split(
    files: dict[str, str], split: str, expected: str, write: Write, tmp_path: Path
) -> None:
    for name, letters in files.items():
        write(name, letters)
    assert texts(load_conversations(tmp_path / "data", split=split)) == expected


@pytest.mark.parametrize(
    ("files", "unread"),
    [
        ({"train.jsonl": "a", "train_more.jsonl": "b", "test.jsonl": "c"}, "train_more.jsonl"),
        ({"train.jsonl": "a", "train.json": "b"}, "train.json"),
        ({"train-0.jsonl": "a", "extra.jsonl": "b"}, "extra.jsonl"),
        ({"a.parquet": "a", "b.jsonl": "b"}, "b.jsonl"),
        ({"a.parquet": "a", "b.csv": "b"}, "b.csv"),
        ({"train.jsonl": "a", "train.csv": "b", "test.csv": "c"}, "train.csv"),
        (
            {"a.jsonl": "a", "b.jsonl.lz4": "b", "c.arrow": "c", "notes.txt": "d"},
            "b.jsonl.lz4, c.arrow",
        ),
    ],
)
def test_files_of_a_folder_that_are_not_read_are_listed(
    files: dict[str, str], unread: str, write: Write, tmp_path: Path, caplog: Any
) -> None:
    for name, letters in files.items():
        write(name, letters)
    with caplog.at_level(logging.WARNING):
        assert texts(load_conversations(tmp_path / "data")) == "a"
    (record,) = [record for record in caplog.records if record.name.startswith("vlsi_cache")]
    assert record.getMessage().endswith(f"; not read: {unread}")


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_files_that_the_names_of_others_count_are_missed(
    suffix: str, write: Write, tmp_path: Path, caplog: Any
) -> None:
    write(f"train-00001-of-00003.{suffix}", "a")
    with caplog.at_level(logging.WARNING):
        assert texts(load_conversations(tmp_path / "data")) == "a"
        assert f"train-*.{suffix} count 3 files, and 2 of them are not there" in caplog.text
        caplog.clear()
        write(f"train-00002-of-00003.{suffix}", "b")
        write(f"train-00003-of-00003.{suffix}", "c")
        assert texts(load_conversations(tmp_path / "data")) == "abc"
    assert "not there" not in caplog.text


def test_a_folder_without_the_split_names_its_files(write: Write, tmp_path: Path) -> None:
    write("part-1.jsonl", "a")
    write("test.jsonl", "b")
    problem = r"folder has no file of the split validation.*found part-1.jsonl, test.jsonl"
    with pytest.raises(DataError, match=problem):
        load_conversations(tmp_path / "data", split="validation")
    with pytest.raises(DataError, match="folder has no file of the split train"):
        load_conversations(tmp_path / "data")


def test_tables_in_a_folder_that_are_not_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,question,answer\na.png,q,a\n")
    with pytest.raises(DataError, match=r"holds no dataset.*found metadata.csv.*from_csv\(FILE\)"):
        load_conversations(tmp_path)


def test_linked_folders_are_read_and_loops_end(write: Write, tmp_path: Path) -> None:
    lines = write("elsewhere/part-1.jsonl", "ab")
    table = write("tables/part-1.parquet", "cd")
    for name, target in (("lines", lines), ("table", table)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "linked").symlink_to(target.parent)
        (tmp_path / name / "loop").symlink_to(tmp_path / name)
    assert texts(load_conversations(tmp_path / "lines")) == "ab"
    assert texts(load_conversations(tmp_path / "table")) == "cd"
    (tmp_path / "whole").symlink_to(tmp_path / "data" / "elsewhere")
    assert texts(load_conversations(tmp_path / "whole")) == "ab"


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path: Path, write: Write) -> None:
    write("part-1.jsonl", "a")
    (tmp_path / "data" / "part-2.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match=r"part-2.jsonl: data file cannot be read; found No such"):
        load_conversations(tmp_path / "data")


def test_a_configuration_is_named_after_a_colon(write: Write, tmp_path: Path) -> None:
    write("one.parquet", "a")
    write("two.parquet", "bc")
    folder = tmp_path / "data"
    configs = "".join(
        f"- config_name: {name}\n  data_files: {name}.parquet\n" for name in ("one", "two")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert texts(load_conversations(f"{folder}:two")) == "bc"
    with pytest.raises(DataError, match=r"\['one', 'two'\].*Name one as .*data:CONFIG"):
        load_conversations(folder)
    with pytest.raises(DataError, match=r"dataset cannot be loaded.*three"):
        load_conversations(f"{folder}:three")


def test_a_revision_is_for_the_hub(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(write("a.jsonl", "a"))
    with pytest.raises(DataError, match=r"data.revision is for a name on the hub"):
        load_data(DataSection(path=path, revision="main"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    for name in ("no-such-owner/no-such-data-v1.5:config", "no-such-data"):
        with pytest.raises(DataError, match=f"{name}: dataset cannot be loaded"):
            load_data(DataSection(path=name, revision="main"))


@pytest.mark.parametrize(
    "name", ["owner/gone.jsonl", "a/b/c", "gone.csv", "x" * 5000, "a b", "./x"]
)
def test_a_slip_is_not_taken_for_a_hub_name(name: str) -> None:
    with pytest.raises(DataError, match="there is no such data file or folder") as caught:
        load_conversations(name)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("url", "mend"),
    [
        ("hf://datasets/owner/talks/train.jsonl", "on the hub alone: owner/talks"),
        ("hf://owner/talks", "on the hub alone: owner/talks"),
        ("https://huggingface.co/datasets/owner/talks", "on the hub alone: owner/talks"),
        ("s3://bucket/train.jsonl", "Download it"),
        ("https://example.org/train.jsonl", "Download it"),
    ],
)
def test_the_url_of_data_is_refused_with_what_to_give(url: str, mend: str) -> None:
    with pytest.raises(DataError, match=rf"data is not read from .*://; .*{mend}"):
        load_conversations(url)


def test_where_a_relative_path_was_looked_for_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"found no talks.jsonl in {tmp_path}\. Give"):
        load_conversations("talks.jsonl")


def mixture(*sources: dict[str, Any], **data: Any) -> Any:
    dataset = load_data(
        recipe_from_mapping({"data": {"sources": list(sources), **data}}, where="test").data
    )
    dataset.validate()
    return dataset


def test_sources_are_spread_evenly_by_their_sizes(write: Write) -> None:
    many, few = str(write("many.jsonl", "abcdef")), str(write("few.jsonl", "XYZ"))
    dataset = mixture({"path": many}, {"path": few})
    assert texts(dataset) == "aXbcYdeZf"
    assert dataset[1].origin == "few.jsonl:1"
    assert [sample.sample_id for sample in dataset] == list("012345678")
    assert pickle.loads(pickle.dumps(dataset))[4] == dataset[4]
    assert (
        dataset.fingerprint() != mixture({"path": many, "weight": 2}, {"path": few}).fingerprint()
    )


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (0.5, {"a": 1, "c": 1}),
        (1, dict.fromkeys("abcd", 1)),
        (2, dict.fromkeys("abcd", 2)),
        (2.5, {"a": 3, "b": 2, "c": 3, "d": 2}),
        (0.25, {"a": 1}),
    ],
)
def test_a_weight_says_how_often_rows_are_taken(
    weight: float, expected: dict[str, int], write: Write
) -> None:
    path = str(write("a.jsonl", "abcd"))
    other = str(write("b.jsonl", "XY"))
    dataset = mixture({"path": path, "weight": weight}, {"path": other})
    assert Counter(texts(dataset)) == {**expected, "X": 1, "Y": 1}
    assert len({sample.sample_id for sample in dataset}) == len(dataset)


def test_a_source_has_its_own_limit_columns_and_folder(
    write: Write, tmp_path: Path, folder: Path
) -> None:
    named = tmp_path / "named.jsonl"
    named.write_text(json.dumps({"ask": "q", "reply": "r", "picture": "red.png"}))
    path = str(write("a.jsonl", "abcd"))
    dataset = mixture(
        {"path": path, "limit": 2},
        {
            "path": str(named),
            "columns": {"ask": "question", "reply": "answer", "picture": "image"},
            "image_root": str(folder),
        },
    )
    assert texts(dataset) == "aqb"
    assert dataset.source == f"{path}, {named}"
    assert texts(mixture({"path": path}, {"path": path, "weight": 2}, limit=3)) == "aab"


def test_a_shared_column_may_stand_in_one_source_alone(
    write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"ask": "q", "reply": "r", "note": "n"}))
    talks = {"path": str(write("a.jsonl", "ab"))}
    columns = {"ask": "question", "reply": "answer", "note": None}
    dataset = mixture(talks, {"path": str(pairs)}, columns={**columns, "answr": "answer"})
    dataset.validate()
    assert dataset.columns_not_met() == ["answr"]
    assert "data.columns names columns that no row has: answr" in caplog.text
    # A mapping of a source's own is for that source alone.
    own = mixture({**talks, "columns": {"note": None}}, {"path": str(pairs)}, columns=columns)
    own.validate()
    assert own.columns_not_met() == ["note"]


def test_a_mixture_that_takes_nothing_is_refused(write: Write) -> None:
    path = str(write("a.jsonl", "abcd"))
    with pytest.raises(DataError, match=r"gives no row.*4 rows with weight 0.1"):
        mixture({"path": path, "weight": 0.1})
    with pytest.raises(RecipeError, match=r"data.sources.*is given beside data.path"):
        mixture({"path": path}, path=path)
    with pytest.raises(RecipeError, match=r"data.sources.0.weight"):
        mixture({"path": path, "weight": 0})


def test_rows_that_are_taken_twice_have_names_of_their_own(tmp_path: Path, chat: Any) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({**chat(n, n), "id": n}) for n in "ab"))
    dataset = mixture({"path": str(path), "weight": 3})
    assert [sample.sample_id for sample in dataset] == ["a", "b", "a#2", "b#2", "a#3", "b#3"]


def test_the_home_folder_of_an_unknown_user_is_a_name() -> None:
    with pytest.raises(DataError, match=r"~nobody-here/x.jsonl: there is no such data file"):
        load_data(
            recipe_from_mapping({"data": {"path": "~nobody-here/x.jsonl"}}, where="test").data
        )


def test_environment_of_a_home_folder_is_expanded(write: Write, monkeypatch: Any) -> None:
    path = write("a.jsonl", "a")
    monkeypatch.setitem(os.environ, "HOME", str(path.parent))
    assert texts(load_conversations("~/a.jsonl")) == "a"
    assert texts(load_conversations("~/*.jsonl")) == "a"


def test_files_and_folders_around_a_saved_dataset_are_named(tmp_path: Path) -> None:
    saved = tmp_path / "all" / "saved"
    datasets.Dataset.from_list([{"prompt": "a", "completion": "b"}]).save_to_disk(saved)
    assert len(load_conversations(saved)) == 1
    for name in ("state.json", "dataset_info.json"):
        with pytest.raises(DataError, match=f"belongs to what save_to_disk wrote.*{saved}"):
            load_conversations(saved / name)
    with pytest.raises(DataError, match=f"folders in it are; found saved. Give .*{saved}"):
        load_conversations(tmp_path / "all")


@pytest.mark.parametrize(
    ("name", "mend"),
    [
        ("rows.txt", "Name it .jsonl"),
        ("rows.jsonlines", "Name it .jsonl"),
        ("rows.jsonl.zstd", "Name it .zst"),
        ("rows.jsonl.lz4", "Unpack it"),
    ],
)
def test_other_suffixes_of_json_are_refused_with_what_to_do(
    name: str, mend: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(DataError, match=mend):
        load_conversations(tmp_path / name)


def test_a_column_of_a_type_that_tables_lack_is_refused_with_what_to_do(tmp_path: Path) -> None:
    kind = pa.map_(pa.string(), pa.string())
    table = pa.table({"prompt": ["a"], "completion": ["b"], "more": pa.array([[("k", "v")]], kind)})
    parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="Store this column as JSON text"):
        load_conversations(tmp_path / "rows.parquet")


def test_a_split_that_chooses_nothing_is_said(
    write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = write("rows.jsonl", "ab")
    named = write("dev.jsonl", "ab")
    row = {"prompt": "a", "completion": "b"}
    for split in ("test", "train"):
        table = datasets.Dataset.from_list([row], split=datasets.NamedSplit(split))
        table.save_to_disk(tmp_path / split)
    load_conversations(rows, split="test")
    load_conversations(tmp_path / "train", split="test")
    for sound, split in ((rows, "train"), (named, "validation"), (tmp_path / "test", "test")):
        load_conversations(sound, split=split)
    said = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert said == [
        f"{rows} is one file: split test chooses nothing in it",
        f"{tmp_path / 'train'} is one table: split test chooses nothing in it",
    ]
