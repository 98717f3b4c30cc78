"""Damaged small files of a model: each is named with what it holds and where it is damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from support.lostfiles import LOST
from support.runs import save_image_model, save_text_model
from vlsi_cache.errors import ModelError
from vlsi_cache.models import load_config, load_model, preview_model
from vlsi_cache.recipe import ModelSection

_TEXT = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_IMAGES = ("processor_config.json", "preprocessor_config.json")
_NO_OBJECT = {"a list": b"[1]", "null": b"null", "a text": b'"x"', "a number": b"5"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("saved")
    return {
        "text": save_text_model(folder / "text", num_layers=2),
        "images": save_image_model(folder / "images", num_layers=2),
    }


@pytest.fixture
def copy(saved: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Makes a copy of the model that has a file, to be spoiled."""

    def copied(name: str) -> Path:
        kind = "images" if name in _IMAGES else "text"
        return Path(shutil.copytree(saved[kind], tmp_path / "model"))

    return copied


def _refused(folder: Path, name: str) -> str:
    """What every command says, before it reads any weights."""
    with pytest.raises(ModelError) as caught:
        preview_model(ModelSection(model=str(folder)), "teacher")
    message = str(caught.value)
    assert message.startswith(f"{folder / name}: the file ")
    assert "\n" not in message
    return message.removeprefix(f"{folder / name}: ")


@pytest.mark.parametrize("words", LOST)
@pytest.mark.parametrize("name", [*_TEXT, *_IMAGES, "model.safetensors"])
def test_what_stands_in_a_files_place_is_named(
    name: str, words: str, copy: Callable[[str], Path]
) -> None:
    folder = copy(name)
    (folder / name).write_bytes(LOST[words])
    message = _refused(folder, name)
    # an answer of a server in JSON is JSON, and the wrong one all the same
    assert f", but {words}. " in message


@pytest.mark.parametrize("name", [*_TEXT, *_IMAGES, "model.safetensors"])
def test_an_empty_file_and_a_folder_in_its_place_are_named(
    name: str, copy: Callable[[str], Path]
) -> None:
    folder = copy(name)
    (folder / name).write_bytes(b"")
    assert "but an empty file. Copy or download it again." in _refused(folder, name)
    (folder / name).unlink()
    (folder / name).mkdir()
    assert "cannot be read; found a folder" in _refused(folder, name)


@pytest.mark.parametrize("kind", _NO_OBJECT)
@pytest.mark.parametrize("name", [name for name in (*_TEXT, *_IMAGES) if name.endswith(".json")])
def test_json_that_is_no_object_is_named(name: str, kind: str, copy: Callable[[str], Path]) -> None:
    folder = copy(name)
    (folder / name).write_bytes(_NO_OBJECT[kind])
    found = _NO_OBJECT[kind].decode()
    assert f"holds no JSON object; expected {{…}}; found {found}. " in _refused(folder, name)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "processor_config.json",
    ],
)
def test_a_file_that_is_cut_off_is_named_with_its_line(
    name: str, share: float, copy: Callable[[str], Path]
) -> None:
    folder = copy(name)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: int(share * len(whole))])
    message = _refused(folder, name)
    assert "is not JSON (" in message
    assert " at line " in message
    assert "Copy or download it again: it ends before its JSON does." in message


def test_another_slip_is_shown(copy: Callable[[str], Path]) -> None:
    folder = copy("config.json")
    (folder / "config.json").write_text('{\n "a": 1,\n "b": nothing\n}')
    message = _refused(folder, "config.json")
    assert "(Expecting value at line 3, column 7); found " in message
    assert "nothing" in message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_another_encoding_is_named(encoding: str, copy: Callable[[str], Path]) -> None:
    folder = copy("config.json")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_bytes(text.encode(encoding))
    message = _refused(folder, "config.json")
    assert ("UTF-16" if encoding == "utf-16" else "BOM") in message


def test_a_large_file_is_looked_at_from_both_ends(copy: Callable[[str], Path]) -> None:
    folder = copy("tokenizer.json")
    words = (folder / "tokenizer.json").read_text()
    padded = words.rstrip()[:-1] + " " * (1 << 20) + "}"
    (folder / "tokenizer.json").write_text(padded + "\n")
    preview_model(ModelSection(model=str(folder)), "teacher")
    (folder / "tokenizer.json").write_text(padded[:-1])
    assert "ends before its JSON does" in _refused(folder, "tokenizer.json")


def test_json_that_is_no_tokenizer_is_named(copy: Callable[[str], Path]) -> None:
    folder = copy("tokenizer.json")
    (folder / "tokenizer.json").write_text("{}")
    assert "is JSON, but not a tokenizer; found Model missing" in _refused(folder, "tokenizer.json")


def test_a_processor_without_an_image_processor_is_named(copy: Callable[[str], Path]) -> None:
    folder = copy("processor_config.json")
    (folder / "processor_config.json").write_text("{}")
    message = _refused(folder, "processor_config.json")
    assert "describes no image processor" in message
    assert "found no field at all" in message


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", "the configuration names no model_type; found no field at all"),
        ('{"a": 1, "b": 2}', "the configuration names no model_type; found the fields a, b"),
        ('{"model_type": "llama9"}', "transformers has no such model_type; found llama9"),
        ('{"model_type": ["llama"]}', r"transformers has no such model_type; found \['llama'\]"),
    ],
)
def test_a_configuration_of_no_family_is_named(
    text: str, problem: str, copy: Callable[[str], Path]
) -> None:
    folder = copy("config.json")
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=f"config.json: {problem}") as caught:
        load_config(str(folder))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_needed_may_be_anything(copy: Callable[[str], Path]) -> None:
    folder = copy("config.json")
    for name in ("README.md", "training_args.bin", "merges.txt", "tokenizer.model", "notes.json"):
        (folder / name).write_bytes(LOST["an HTML page (Sign in)"])
    preview_model(ModelSection(model=str(folder)), "teacher")
    load_model(str(folder))


@pytest.mark.parametrize("name", _TEXT)
def test_a_damaged_file_in_the_hubs_local_copy_is_named(
    name: str, copy: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = tmp_path / "hub" / "models--some--model"
    snapshot = local / "snapshots" / ("a" * 40)
    shutil.copytree(copy(name), snapshot)
    (local / "refs").mkdir()
    (local / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    preview_model(ModelSection(model="some/model"), "teacher")
    words, content = next(iter(LOST.items()))
    (snapshot / name).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        preview_model(ModelSection(model="some/model"), "teacher")
    assert str(caught.value).startswith(f"{snapshot / name}: the file is not ")
    assert words in str(caught.value)
