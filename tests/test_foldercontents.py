"""Folders given as what they are not: each is named for what it holds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import pytest
from click.testing import CliRunner
from PIL import Image

from support.caches import make_cache
from support.runs import save_image_model, save_text_model, write_conversations
from vlsi_cache.cli.main import cli
from vlsi_cache.data import load_conversations
from vlsi_cache.errors import CacheError, DataError, ModelError
from vlsi_cache.foldercontents import find_folder_contents
from vlsi_cache.models import load_config
from vlsi_cache.store import open_cache

_OTHERS = {
    "model": "a model",
    "image model": "a model",
    "configuration": "a model",
    "tokenizer": "a tokenizer or processor without a model",
    "weights": "weights without a config.json",
    "adapter": "an adapter of peft",
    "pipeline": "a pipeline of diffusers",
    "cache": "a cache of vlsi-cache",
    "cut cache": "a cache without its manifest.json",
    "shards": "the shards of a cache",
    "verbalizers": "trained verbalizers",
    "run": "the output of a run, with a cache in its folder cache",
}
"""Folders that hold no rows, with the words for them."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("folders")
    made = {name: root / name for name in (*_OTHERS, "data", "saved", "empty", "pictures")}
    save_text_model(made["model"], num_layers=2)
    save_image_model(made["image model"], num_layers=2)
    _copy(made["model"], made["configuration"], "*.safetensors", "token*")
    _copy(made["model"], made["tokenizer"], "*.safetensors", "*config.json")
    _copy(made["model"], made["weights"], "*.json*")
    for name in ("adapter", "pipeline", "verbalizers", "empty", "pictures", "run"):
        made[name].mkdir()
    (made["adapter"] / "adapter_config.json").write_text("{}")
    (made["pipeline"] / "model_index.json").write_text("{}")
    (made["verbalizers"] / "verbalizers.json").write_text("{}")
    make_cache(made["run"] / "cache")
    shutil.copytree(made["run"] / "cache", made["cache"])
    shutil.copytree(made["run"] / "cache" / "shards", made["shards"])
    _copy(made["cache"], made["cut cache"], "manifest.json")
    Image.new("RGB", (4, 4)).save(made["pictures"] / "a.png")
    rows = write_conversations(made["data"] / "train.jsonl", 3)
    given = [json.loads(line) for line in rows.read_text().splitlines()]
    datasets.Dataset.from_list(given).save_to_disk(str(made["saved"]))
    return made


def _copy(source: Path, target: Path, *without: str) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*without))


@pytest.mark.parametrize("name", _OTHERS)
def test_a_folder_without_rows_is_named_where_data_is_wanted(
    name: str, folders: dict[str, Path]
) -> None:
    found = find_folder_contents(folders[name])
    assert (found.words, found.may_be_rows) == (_OTHERS[name], False)
    with pytest.raises(DataError) as caught:
        load_conversations(folders[name])
    assert f"{folders[name]}: the folder is not data; expected " in str(caught.value)
    assert f"; found {_OTHERS[name]}. Give " in str(caught.value)


@pytest.mark.parametrize("name", ["run", "model", "verbalizers", "adapter"])
def test_tables_are_read_whatever_lies_beside_them(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """As where a run's output is the folder of its data."""
    folder = tmp_path / name
    shutil.copytree(folders[name], folder)
    alone = datasets.load_from_disk(str(folders["saved"]))
    alone.to_parquet(folder / "train-00000-of-00001.parquet")
    found = load_conversations(folder)
    assert len(found) == 3
    assert found[0].key() == load_conversations(folders["saved"])[0].key()


@pytest.mark.parametrize("name", ["cache", "run", "tokenizer", "data", "saved", "empty"])
def test_a_folder_without_a_model_is_named_where_a_model_is_wanted(
    name: str, folders: dict[str, Path]
) -> None:
    words = find_folder_contents(folders[name]).words
    with pytest.raises(ModelError) as caught:
        load_config(str(folders[name]))
    assert f"the folder holds no model; expected config.json; found {words}. " in str(caught.value)


@pytest.mark.parametrize("name", ["model", "data", "saved", "pictures", "run"])
def test_a_folder_without_a_cache_is_named_where_a_cache_is_wanted(
    name: str, folders: dict[str, Path]
) -> None:
    words = find_folder_contents(folders[name]).words
    with pytest.raises(CacheError) as caught:
        open_cache(folders[name])
    assert f"manifest.json is missing; found {words}. " in str(caught.value)


def test_data_is_data(folders: dict[str, Path]) -> None:
    assert find_folder_contents(folders["data"]).words == "data (train.jsonl)"
    assert find_folder_contents(folders["saved"]).words == "a dataset that save_to_disk wrote"
    assert find_folder_contents(folders["empty"]).words == "an empty folder"
    assert find_folder_contents(folders["pictures"]).words == "pictures alone"


def test_data_beside_a_models_files_is_read(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["model"], tmp_path / "both")
    shutil.copy(folders["data"] / "train.jsonl", tmp_path / "both")
    assert len(load_conversations(tmp_path / "both")) == 3
    # a folder of data may have a file config.json of its own, or a model below it
    shutil.copytree(folders["data"], tmp_path / "data")
    (tmp_path / "data" / "train.jsonl").rename(tmp_path / "data" / "part-1.jsonl")
    (tmp_path / "data" / "tokenizer.json").write_text("[]")
    with pytest.raises(DataError, match=r"tokenizer.json: data file is empty"):
        load_conversations(tmp_path / "data")


def test_models_in_a_folder_are_not_data(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("model", "image model"):
        shutil.copytree(folders[name], tmp_path / "models" / name)
    with pytest.raises(DataError, match=r"models/image model: the folder is not data.*found a mo"):
        load_conversations(tmp_path / "models")


@pytest.mark.parametrize(("folder", "name"), [("model", "config.json"), ("cache", "index.json")])
def test_a_file_of_a_model_or_a_cache_is_not_data(
    folder: str, name: str, folders: dict[str, Path]
) -> None:
    with pytest.raises(DataError, match=f"the file belongs to {_OTHERS[folder]}, and is not data"):
        load_conversations(folders[folder] / name)


def test_a_command_says_it_in_one_line(folders: dict[str, Path]) -> None:
    arguments = ["check", "--teacher", folders["model"], "--data", folders["cache"]]
    result = CliRunner().invoke(cli, list(map(str, arguments)))
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "found a cache of vlsi-cache" in line
