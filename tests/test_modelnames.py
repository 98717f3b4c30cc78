"""Names of models that are neither folders nor names on the hub: each slip has its line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vlsi_cache.errors import ModelError
from vlsi_cache.models import load_config
from vlsi_cache.recipe import is_there, validate_model_folder
from vlsi_cache.recipe.modelnames import looks_local


def _refused(name: str) -> str:
    with pytest.raises(ModelError) as caught:
        validate_model_folder(name)
    with pytest.raises(ModelError) as loading:
        load_config(name)
    assert str(caught.value) == str(loading.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "the name of the model is empty"),
        (" \t", "the name of the model is empty"),
        ("Qwen/Qwen2 ", "has blanks or quotes around it. Give Qwen/Qwen2."),
        ("'Qwen/Qwen2'", "has blanks or quotes around it. Give Qwen/Qwen2."),
        ("model\n", "has blanks or quotes around it. Give model."),
        ("https://huggingface.co/Qwen/Qwen2-VL-7B", "by its name alone. Give Qwen/Qwen2-VL-7B."),
        ("https://huggingface.co/Qwen/Qwen2/tree/v1.0", "Give Qwen/Qwen2, and v1.0 as the model's"),
        ("hf.co/Qwen/Qwen2?library=x", "by its name alone. Give Qwen/Qwen2."),
        ("hf://Qwen/Qwen2", "by its name alone. Give Qwen/Qwen2."),
        ("http://example.com/model.zip", "models are not read from http. Download it"),
        ("s3://bucket/model", "models are not read from s3. Download it"),
        ("file:///data/model", "given by its path alone. Give /data/model."),
        ("datasets/owner/rows", "this is the name of a dataset"),
        ("https://huggingface.co/datasets/owner/rows", "this is the name of a dataset"),
        ("C:\\Users\\me\\model", "this is a path of Windows"),
        ("C:/Users/me/model", "this is a path of Windows"),
        ("models\\qwen", "this is a path of Windows"),
        ("Qwen/Qwen2@v1", "the name holds a revision. Give Qwen/Qwen2, and v1 as"),
        ("Qwen/Qwen2:main", "the name holds a revision. Give Qwen/Qwen2, and main as"),
        ("Qwen/Qwen2.git", "Give Qwen/Qwen2."),
        ("$HOME/model", "variables of the shell are not replaced"),
        ("my model", "neither a folder nor a name that a model on the hub can have"),
        ("Qwen/Qwen 2", "neither a folder nor a name that a model on the hub can have"),
        ("Qwen2,Qwen3", "neither a folder nor a name that a model on the hub can have"),
        ("-x", "neither a folder nor a name that a model on the hub can have"),
        ("\0", "neither a folder nor a name that a model on the hub can have"),
        ("ünï/cödé", "neither a folder nor a name that a model on the hub can have"),
        ("a/" + "b" * 120, "neither a folder nor a name that a model on the hub can have"),
        ("a" * 5000, "neither a folder nor a name that a model on the hub can have"),
        ("/no/such/folder", "there is no such model folder"),
        ("./none", "there is no such model folder"),
        ("~nobody-of-this-name/model", "there is no such model folder"),
    ],
)
def test_a_slip_in_a_name_has_its_line(name: str, words: str) -> None:
    assert words in _refused(name)
    assert len(_refused(name)) < 500


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen2-VL-7B-Instruct", "a/b.c_d-e", "01-ai/Yi-6B"])
def test_a_name_that_the_hub_can_have_passes(name: str) -> None:
    validate_model_folder(name)


def test_a_folder_of_any_name_is_a_folder(tmp_path: Path) -> None:
    for name in ("my model", "a@b", "C:model", "ünï", " blank ", "x.git", "$HOME"):
        (tmp_path / name).mkdir()
        validate_model_folder(str(tmp_path / name))


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
        assert f"this is a file. Give its folder: {tmp_path}." in _refused(str(tmp_path / name))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("{}")
    assert "this is a file. Give the folder" in _refused(str(tmp_path / "data" / "train.jsonl"))


def test_a_slip_in_a_path_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "qwen2-large").mkdir()
    error = _refused(str(tmp_path / "qwen2_large"))
    assert f"Perhaps {tmp_path}/qwen2-large is meant." in error


def test_what_may_be_a_path_alone_is_known(tmp_path: Path) -> None:
    assert looks_local("./a")
    assert looks_local("a/b/c")
    assert looks_local(str(tmp_path))
    assert not looks_local("owner/model")
    assert not is_there(Path("\0"))
    assert not is_there(Path("a" * 5000))


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "model.safetensors", "additional_chat_templates/a.jinja"],
)
def test_a_pipe_among_the_files_of_a_model_is_named(tmp_path: Path, name: str) -> None:
    for file in ("config.json", "tokenizer.json"):
        (tmp_path / file).write_text("{}")
    pipe = tmp_path / name
    pipe.parent.mkdir(exist_ok=True)
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    error = _refused(str(tmp_path))
    assert f"{pipe}: {pipe.name} is a pipe or a device, not a file. Copy the" in error


def test_links_and_what_is_hidden_may_lie_beside_a_model(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("{}")
    (tmp_path / "config.json").symlink_to("blob")
    (tmp_path / "lost").symlink_to("nowhere")
    (tmp_path / "original").mkdir()
    os.mkfifo(tmp_path / ".lock")
    validate_model_folder(str(tmp_path))
