"""A model that cannot be used is refused by every command alike, in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from support.lostfiles import LFS_POINTER
from support.runs import save_text_model, write_conversations
from vlsi_cache.cli.main import cli

_COMMANDS = ("check", "plan", "dump-teacher", "train-student", "evaluate")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_model(tmp_path_factory.mktemp("saved") / "model", num_layers=2)


def _without_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _as_classifier(folder: Path) -> None:
    AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(folder)


def _with_a_pointer(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(LFS_POINTER)


def _with_half_the_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _lines(command: str, model: Path, data: Path, tmp_path: Path) -> list[str]:
    output = ["--output", tmp_path / "out"]
    arguments = {
        "check": ["--teacher", model, "--data", data],
        "plan": ["--teacher", model, "--data", data],
        "dump-teacher": ["--teacher", model, "--data", data, *output],
        "train-student": ["--student", model, "--data", data, "--cache", tmp_path, *output],
        "evaluate": [model, "--data", data],
    }[command]
    result = CliRunner(env={"COLUMNS": "300"}).invoke(cli, [command, *map(str, arguments)])
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return (result.stderr + result.stdout).splitlines()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_as_classifier, "the model is a classifier, which gives labels or scores; expected a dec"),
        (_without_a_weight, "1 weight is missing from the checkpoint; found model.norm.weight."),
        (_with_a_pointer, "the file is not JSON, but a git-lfs pointer to 12,345 bytes. Fetch"),
        (_with_half_the_weights, "the file is cut off; expected "),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_every_command_says_the_same(
    damage: Callable[[Path], None], words: str, saved: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(saved, tmp_path / "model"))
    damage(model)
    data = write_conversations(tmp_path / "data.jsonl", 2)
    for command in _COMMANDS:
        lines = [line for line in _lines(command, model, data, tmp_path) if words in line]
        assert len(lines) == 1, command


def test_a_check_lists_its_warnings(saved: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(saved, tmp_path / "model"))
    weights = load_file(model / "model.safetensors")
    weights["extra.weight"] = weights["model.norm.weight"].clone()
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    data = write_conversations(tmp_path / "data" / "train.jsonl", 2)
    shutil.copy(data, data.with_name("train-more.jsonl"))
    arguments = ["check", "--teacher", model, "--data", data.parent, "--json"]
    result = CliRunner().invoke(cli, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    unread, files = sorted(json.loads(result.stdout)["warnings"], key=lambda one: "split" in one)
    assert unread == f"{model}: 1 weight is not part of the model: extra.weight"
    assert "not read: train-more.jsonl" in files
    assert unread in result.stderr
