"""Errors that a user can mend: one line that names problem and mend, and an exit code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from support.runs import make_recipe, save_text_model, write_conversations
from vlsi_cache.cli.main import cli
from vlsi_cache.recipe import Recipe
from vlsi_cache.teacher import dump_teacher


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    recipe = make_recipe(tmp_path_factory.mktemp("errors"), images=True)
    dump_teacher(recipe, lambda _: None)
    return recipe


def _recipe_file(recipe: Recipe, folder: Path, **changes: Any) -> Path:
    raw = json.loads(recipe.model_dump_json())
    raw["cache"]["path"] = str(recipe.cache_path)
    raw["output"] = str(folder / "run")
    for path, value in changes.items():
        section, _, key = path.partition("__")
        if key:
            raw[section][key] = value
        else:
            raw[section] = value
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(raw), encoding="utf-8")  # JSON is YAML
    return file


def _expect(result: Result, *parts: str, code: int = 1) -> None:
    assert result.exit_code == code, result.output
    lines = result.stderr.splitlines()
    (start,) = [row for row, line in enumerate(lines) if line.startswith("error: ")]
    for part in parts:
        assert part in "\n".join(lines[start:])
    assert "Traceback" not in result.output


def _rows(recipe: Recipe) -> list[dict[str, Any]]:
    text = Path(str(recipe.data.path)).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _change_data(
    recipe: Recipe, folder: Path, change: Callable[[list[dict[str, Any]]], None]
) -> Path:
    """A copy of the run's data and images, changed."""
    source = Path(str(recipe.data.path))
    target = folder / "data"
    target.mkdir()
    for image in source.parent.glob("*.png"):
        shutil.copy(image, target)
    rows = _rows(recipe)
    change(rows)
    path = target / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_wrong_recipe_key(run: Recipe, tmp_path: Path) -> None:
    file = _recipe_file(run, tmp_path, cahe={})
    _expect(
        _run("dump-teacher", "-r", file), "cahe: unknown key, perhaps cache", "recipe.json", code=2
    )
    _expect(_run("dump-teacher", "--set", "cache.q=1"), "cache.q: unknown key", code=2)


def test_nothing_named(tmp_path: Path) -> None:
    data = write_conversations(tmp_path / "data.jsonl", 2)
    _expect(_run("dump-teacher", "--device", "cpu"), "data.path", "--data PATH", code=2)
    _expect(_run("dump-teacher", "--data", data), "teacher.model", "--teacher MODEL", code=2)
    _expect(
        _run("train-student", "--data", data, "--stages", "finetuning"), "student.model", code=2
    )


def test_a_missing_image(run: Recipe, tmp_path: Path) -> None:
    data = _change_data(run, tmp_path, lambda rows: None)
    (data.parent / "4.png").unlink()
    file = _recipe_file(run, tmp_path, data__path=str(data))
    _expect(_run("dump-teacher", "-r", file), "data.jsonl:5", "4.png", "image file is missing")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image(workers: int, run: Recipe, tmp_path: Path) -> None:
    data = _change_data(run, tmp_path, lambda rows: None)
    broken = data.parent / "4.png"
    broken.write_bytes(broken.read_bytes()[:20])
    file = _recipe_file(
        run,
        tmp_path,
        data__path=str(data),
        cache__path=str(tmp_path / "cache"),
        cache__workers=workers,
        teacher__verbalizers=str(run.teacher_verbalizers_path),
        teacher__taps=None,
    )
    _expect(_run("dump-teacher", "-r", file), "data.jsonl:5", "4.png", "cannot be decoded")


def test_an_empty_response(run: Recipe, tmp_path: Path) -> None:
    def empty(rows: list[dict[str, Any]]) -> None:
        rows[2]["messages"][1]["content"] = [{"type": "text", "text": ""}]

    data = _change_data(run, tmp_path, empty)
    file = _recipe_file(run, tmp_path, data__path=str(data))
    _expect(_run("dump-teacher", "-r", file), "data.jsonl:3", "empty")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_conversation_longer_than_the_context(workers: int, run: Recipe, tmp_path: Path) -> None:
    file = _recipe_file(run, tmp_path, data__max_length=12, finetuning__workers=workers)
    result = _run("train-student", "-r", file, "--stages", "finetuning")
    _expect(result, "tokens", "12", "max_length")


def test_data_that_is_not_there(run: Recipe, tmp_path: Path) -> None:
    file = _recipe_file(run, tmp_path, data__path=str(tmp_path / "absent.jsonl"))
    _expect(_run("dump-teacher", "-r", file), "absent.jsonl")


def test_a_model_that_is_not_there(run: Recipe, tmp_path: Path) -> None:
    file = _recipe_file(run, tmp_path, teacher__model=str(tmp_path / "absent"))
    _expect(_run("dump-teacher", "-r", file), "absent", "no such model folder")


def test_tokenizers_that_differ(run: Recipe, tmp_path: Path) -> None:
    student = save_text_model(tmp_path / "text", num_layers=4)
    file = _recipe_file(run, tmp_path, student__model=str(student))
    _expect(_run("train-student", "-r", file), "tokenizers of teacher and student differ")


def test_a_cache_made_for_other_data(run: Recipe, tmp_path: Path) -> None:
    def repaint(_: list[dict[str, Any]]) -> None:
        Image.new("RGB", (16, 16), "pink").save(tmp_path / "data" / "0.png")

    data = _change_data(run, tmp_path, repaint)
    file = _recipe_file(run, tmp_path, data__path=str(data))
    _expect(_run("train-student", "-r", file), "cache was made for other data")
    _expect(_run("dump-teacher", "-r", file), "dataset.fingerprint")


def test_a_cache_folder_half_written(run: Recipe, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(run.cache_path, cache)
    file = _recipe_file(run, tmp_path, cache__path=str(cache))
    (cache / "shards" / "00001.zarr.zip").unlink()
    _expect(_run("train-student", "-r", file), "00001.zarr.zip: file is missing", "dump-teacher")
    (cache / "index.json").unlink()
    _expect(_run("train-student", "-r", file), "cache is incomplete", "1 of 3", "dump-teacher")
    (cache / "manifest.json").write_text('{"format_version": 1', encoding="utf-8")
    _expect(_run("train-student", "-r", file), "manifest.json")
    _expect(_run("inspect", cache), "manifest.json")
    (cache / "manifest.json").unlink()
    _expect(_run("inspect", cache), str(cache), "manifest")


def test_another_cache_is_refused_before_verbalizers_are_trained(
    run: Recipe, tmp_path: Path
) -> None:
    file = _recipe_file(run, tmp_path)
    result = _run("dump-teacher", "-r", file, "-m", "3")
    _expect(result, "cache was begun with other settings", "m is", "asked for 3")
    result = _run("dump-teacher", "-r", file, "--taps", "0,2")
    _expect(result, "cache was begun with other settings", "taps is", "asked for [0, 2, -1]")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "record", "said"),
    [
        ("-k 8", "k 8, m 14, drawn_from rest", True),
        ("-k 4 -m 12", "k 4, m 12, drawn_from rest", True),
        ("-k 8 --drawn-from whole", "k 8, m 12, drawn_from whole", True),
        ("-k 8 -m 12 --drawn-from whole", "", False),
    ],
)
def test_the_record_that_follows_from_flags_is_said_before_a_cache_of_another_is_refused(
    flags: str, record: str, said: bool, run: Recipe, tmp_path: Path
) -> None:
    kept = {"path": str(run.cache_path), "samples_per_shard": run.cache.samples_per_shard}
    file = _recipe_file(run, tmp_path, cache=kept)
    result = _run("dump-teacher", "-r", file, *flags.split())
    assert [f"the record is {record}: the recipe gives cache.k" in result.stdout] == [said]
    _expect(result, "begun with other settings", "--set cache.k=4 --set cache.m=12 --set cache.d")


def test_a_plan_says_the_record_that_follows(run: Recipe, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("[]\n", encoding="utf-8")  # refused once it is read
    file = _recipe_file(run, tmp_path, cache={"m": 16}, output=str(tmp_path / "new"))
    result = _run("plan", "-r", file, "--data", data)
    assert "the record is k 0, m 16, drawn_from rest" in result.stderr
    _expect(result, "data.jsonl")


def test_taps_out_of_range(run: Recipe, tmp_path: Path) -> None:
    file = _recipe_file(run, tmp_path)
    new = ("--cache", tmp_path / "new")
    result = _run("dump-teacher", "-r", file, *new, "--taps", "1,99")
    _expect(result, "99", "from 0 to 7")
    unclear = _run("dump-teacher", "-r", file, "--taps", "one")
    assert unclear.exit_code == 2
    assert "block indices such as 2,6,10" in unclear.output


def test_a_k_that_draws_of_the_whole_do_not_go_with_is_named(run: Recipe, tmp_path: Path) -> None:
    file = _recipe_file(run, tmp_path, cache={})
    for flags, found in (("-k 256", "k 256, m 12"), ("-k 0", "k 0, m 12"), ("-m 0", "k 4, m 0")):
        result = _run("dump-teacher", "-r", file, *flags.split(), "--drawn-from", "whole")
        _expect(result, "--drawn-from: is whole, which needs", f"found {found}", code=2)


def test_k_larger_than_the_vocabulary(run: Recipe, tmp_path: Path) -> None:
    changes = {"cache__path": str(tmp_path / "cache"), "cache__drawn_from": "rest"}
    file = _recipe_file(run, tmp_path, **changes)
    result = _run("dump-teacher", "-r", file, "--k", 10_000_000)
    _expect(result, "cache.k", "vocabulary", code=2)


def test_a_device_that_is_not_there(run: Recipe, tmp_path: Path) -> None:
    file = _recipe_file(run, tmp_path)
    for device, expected in {
        "cuda:7": "auto or cpu",
        "meta": "auto, cpu, cuda",
        "toaster": "auto, cpu, cuda",
    }.items():
        result = _run("dump-teacher", "-r", file, "--device", device)
        _expect(result, "device", device, expected, code=2)


def test_an_unknown_sample(run: Recipe) -> None:
    _expect(_run("inspect", run.cache_path, "--sample", "nobody"), "nobody")


def test_debug_shows_the_traceback(run: Recipe, tmp_path: Path) -> None:
    file = _recipe_file(run, tmp_path, data__path=str(tmp_path / "absent.jsonl"))
    result = _run("dump-teacher", "-r", file, "--debug")
    assert result.exit_code == 1
    assert result.exc_info is not None
    assert result.exc_info[0].__name__ == "DataError"


def test_inspect_prints_tables_and_json(run: Recipe) -> None:
    table = _run("inspect", "--output", run.output)
    assert table.exit_code == 0
    assert "output" in table.output
    summary = json.loads(_run("inspect", run.cache_path, "--json").output)
    for key in (
        "num_samples",
        "num_tokens",
        "bytes_total",
        "bytes_per_token_tap",
        "taps",
        "teacher",
        "tokenizer",
        "complete",
    ):
        assert key in summary
    assert [tap["tap"] for tap in summary["taps"]] == [1, 3, 5, -1]
    assert {"entropy_nats", "captured_mass", "agreement_with_final"} <= summary["taps"][0].keys()
    words = _run("inspect", run.cache_path, "--sample", "s0")
    assert words.exit_code == 0
    assert "The" in words.output
    view = json.loads(_run("inspect", run.cache_path, "--sample", "s0", "--json").output)
    assert view["sample_id"] == "s0"
