"""A run's folder that belongs to something else is refused by name, and no other is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.runs import save_text_model, write_conversations
from vlsi_cache.cli.main import cli
from vlsi_cache.errors import StageError
from vlsi_cache.recipe import Recipe, load_recipe
from vlsi_cache.recipe.outputs import validate_outputs


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs")
    save_text_model(folder / "teacher", num_layers=2)
    write_conversations(folder / "rows" / "train.jsonl", 2)
    for name in ("cache/shards", "verbalizers", "run/student", "run/cache/shards", "other"):
        (folder / name).mkdir(parents=True)
    for name in ("cache/manifest.json", "verbalizers/verbalizers.json", "run/cache/manifest.json"):
        (folder / name).write_text("{}", encoding="utf-8")
    (folder / "other" / "notes.txt").write_text("mine", encoding="utf-8")
    (folder / "run" / "student" / "config.json").write_text("{}", encoding="utf-8")
    return folder


def _recipe(here: Path, **given: str) -> Recipe:
    paths = {"teacher.model": "teacher", "data.path": "rows", "output": "out"} | given
    return load_recipe(None, [f"{key}={here / value}" for key, value in paths.items()])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"output": "teacher"}, r"teacher: the run's folder \(--output.*is the teacher's own"),
        ({"output": "teacher/run"}, "lies inside the teacher's own folder"),
        ({"output": "rows"}, "is the folder of the data"),
        ({"output": "rows/run"}, "lies inside the folder of the data"),
        ({"output": "other", "cache.path": "other"}, "is the cache's own folder"),
        ({"output": "new/run", "cache.path": "new"}, "lies inside the cache's own folder"),
        ({"output": "cache"}, "is taken: it holds a cache of vlsi-cache"),
        ({"output": "cache/a/b"}, "lies inside a cache; found .*cache"),
        ({"output": "verbalizers"}, "is taken: it holds trained verbalizers"),
        ({"output": "run", "student.model": "run/student"}, "is the result that this run"),
        ({"output": "rows/train.jsonl"}, "a folder, and this is a file; found [0-9]+ bytes of te"),
        ({"output": "rows/train.jsonl/run"}, r"train.jsonl: .* is to be .*train.jsonl/run, and th"),
        ({"cache.path": "rows/train.jsonl"}, r"the cache \(--cache, or cache.path in the recipe\)"),
        ({"cache.path": "teacher"}, "cannot be here: this folder holds a model"),
    ],
)
def test_a_folder_of_something_else_is_refused(
    given: dict[str, str], words: str, here: Path
) -> None:
    with pytest.raises(StageError) as caught:
        validate_outputs(_recipe(here, **given))
    assert re.search(words, str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"output": "other"},
        {"output": "run"},
        {"output": "run", "cache.path": "run/cache"},
        {"output": "run", "cache.path": "cache"},
        {"output": "run", "cache.path": "run"},  # whose reader says where the cache is
        {"output": "other/run", "cache.path": "other"},
        {"output": "rows", "data.path": "rows/train.jsonl"},
        {"output": "teacher-2"},
        {"output": "new", "student.model": "run/student"},
        {"cache.path": "new/cache"},
    ],
)
def test_ordinary_folders_are_taken(given: dict[str, str], here: Path) -> None:
    validate_outputs(_recipe(here, **given))


def test_who_works_inside_the_models_folder_may_write_there(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here / "teacher")
    validate_outputs(load_recipe(None, ["teacher.model=.", "output=runs/vlsi"]))
    validate_outputs(load_recipe(None, ["data.path=../rows", "cache.path=s3://bucket/cache"]))
    with pytest.raises(StageError, match="is the teacher's own folder"):
        validate_outputs(load_recipe(None, ["teacher.model=.", "output=."]))


def test_a_command_refuses_it_before_anything_is_imported(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, teacher = here / "rows", here / "teacher"
    words = ["dump-teacher", "--teacher", str(teacher), "--data", str(rows), "-o", str(teacher)]
    with pytest.raises(SystemExit) as end:
        cli(words)
    assert end.value.code == 1
    found = capsys.readouterr()
    assert "importing" not in found.out
    assert "is the teacher's own folder. Choose another --output" in found.err
