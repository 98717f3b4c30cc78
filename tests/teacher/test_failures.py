"""Samples that cannot be read: an error, or skipped, counted and listed where asked for."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from support.runs import make_recipe
from vlsi_cache.cli.main import cli
from vlsi_cache.data.images import ImageRef
from vlsi_cache.errors import CacheError, DataError, StageError
from vlsi_cache.recipe import Recipe
from vlsi_cache.store import open_cache, verify_cache
from vlsi_cache.student import train_student
from vlsi_cache.teacher import dump_teacher
from vlsi_cache.training.samples.left_out import reason_of


def with_section(recipe: Recipe, section: str, **changes: Any) -> Recipe:
    changed = getattr(recipe, section).model_copy(update=changes)
    return recipe.model_copy(update={section: changed})


def dump(recipe: Recipe) -> None:
    dump_teacher(recipe, lambda _: None)


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A run whose verbalizers are trained; every third conversation has three turns."""
    recipe = make_recipe(tmp_path_factory.mktemp("failures"))
    dump(recipe)
    return recipe


@pytest.fixture
def short(dumped: Recipe, tmp_path: Path) -> Recipe:
    """The same, for a new cache, with a limit that the longest third of the samples exceeds."""
    recipe = with_section(dumped, "data", max_length=60)
    recipe = with_section(recipe, "teacher", verbalizers=dumped.teacher_verbalizers_path, taps=None)
    return with_section(recipe, "cache", path=tmp_path / "cache")


def test_a_sample_that_cannot_be_read_stops_the_run_unless_asked_otherwise(short: Recipe) -> None:
    with pytest.raises(DataError, match=r"sample 's2'.*longer than the model's context"):
        dump(short)


def test_skipped_samples_are_counted_listed_and_logged(
    short: Recipe, dumped: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = with_section(short, "cache", on_error="skip")
    with caplog.at_level(logging.WARNING):
        dump(recipe)
    cache, whole = open_cache(recipe.cache_path), open_cache(dumped.cache_path)
    failures = cache.failures()
    assert list(failures) == [2, 5, 8, 11]
    assert "longer than the model's context" in failures[2]
    assert str(tmp_path) not in failures[2]
    assert caplog.text.count("skipped sample") == 4
    for index, record in enumerate(cache):
        assert record.failure == failures.get(index)
        assert record.key == whole[index].key
        wanted = 0 if index in failures else len(whole[index].response_ids)
        assert len(record.response_ids) == len(record.distribution) == wanted
    seal = json.loads((recipe.cache_path / "shards/00000.json").read_bytes())
    assert seal["num_failed"] == 1
    found = verify_cache(recipe.cache_path)
    assert (found.sound, found.complete) == (True, True)
    runner = CliRunner(env={"COLUMNS": "200"})
    listed = json.loads(runner.invoke(cli, ["inspect", str(recipe.cache_path), "--json"]).stdout)
    assert list(listed["failures"]) == ["s2", "s5", "s8", "s11"]
    assert "4 of them failed" in runner.invoke(cli, ["inspect", str(recipe.cache_path)]).stdout


def test_skipping_gives_the_same_bytes_again(short: Recipe) -> None:
    recipe = with_section(short, "cache", on_error="skip")
    dump(recipe)
    shards = recipe.cache_path / "shards"
    before = {path.name: path.read_bytes() for path in shards.iterdir()}
    (shards / "00001.zarr.zip").unlink()
    dump(recipe)
    assert {path.name: path.read_bytes() for path in shards.iterdir()} == before


def test_the_student_leaves_out_what_was_skipped(
    short: Recipe, dumped: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dump(with_section(short, "cache", on_error="skip"))
    recipe = with_section(dumped, "cache", path=short.cache_path)
    with caplog.at_level(logging.WARNING):
        student = train_student(recipe.model_copy(update={"output": tmp_path / "run"}))
    assert (student / "model.safetensors").is_file()
    assert "interaction leaves out 4 of 12 samples" in caplog.text


@pytest.fixture
def broken_tap(dumped: Recipe, tmp_path: Path) -> Recipe:
    """A verbalizer of NaN: no sample can be read."""
    folder = tmp_path / "verbalizers"
    folder.mkdir()
    for file in dumped.teacher_verbalizers_path.iterdir():
        if file.suffix in (".json", ".safetensors"):
            (folder / file.name).write_bytes(file.read_bytes())
    state = load_file(folder / "verbalizers.safetensors")
    state["layers.3.0.down.weight"].fill_(float("nan"))
    save_file(state, folder / "verbalizers.safetensors")
    recipe = with_section(dumped, "teacher", verbalizers=folder, taps=None)
    return with_section(recipe, "cache", path=tmp_path / "cache", on_error="skip")


def test_too_many_failures_in_a_row_stop_the_run(broken_tap: Recipe) -> None:
    recipe = with_section(broken_tap, "cache", max_failures_in_a_row=7)
    with pytest.raises(
        StageError, match=r"'s7': 8 samples in a row.*not finite at tap 3; expected"
    ):
        dump(recipe)


def test_a_cache_of_failures_only_is_refused_by_both_commands(
    broken_tap: Recipe, dumped: Recipe, tmp_path: Path
) -> None:
    for _ in range(2):  # a second run, with nothing more to write, says so too
        with pytest.raises(CacheError, match=r"no sample of the cache could be read.*at tap 3"):
            dump(broken_tap)
    failures = open_cache(broken_tap.cache_path).failures()
    assert set(failures.values()) == {"teacher's distribution is not finite at tap 3"}
    assert len(failures) == 12
    recipe = with_section(dumped, "cache", path=broken_tap.cache_path)
    with pytest.raises(CacheError, match="no sample of the cache could be read"):
        train_student(recipe.model_copy(update={"output": tmp_path / "run"}))
    assert not (tmp_path / "run").exists(), "before anything is trained"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_skipped_in_whichever_process_it_is_opened(
    tmp_path: Path, workers: int
) -> None:
    recipe = make_recipe(tmp_path, images=True)
    dump(recipe)
    image = tmp_path / "4.png"
    image.write_bytes(image.read_bytes()[:20])
    recipe = with_section(recipe, "cache", path=tmp_path / "cache", workers=workers)
    recipe = with_section(recipe, "teacher", verbalizers=recipe.teacher_verbalizers_path, taps=None)
    with pytest.raises(DataError, match=r"4\.png"):
        dump(recipe)
    dump(with_section(recipe, "cache", on_error="skip"))
    failures = open_cache(tmp_path / "cache").failures()
    assert list(failures) == [4]
    assert "decoded" in failures[4]
    assert " at 0x" not in failures[4]
    assert str(tmp_path) not in failures[4]


def test_a_reason_says_nothing_of_the_machines_paths(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "noise.png").write_bytes(b"no image")
    for name in ("missing.png", "folder.png", "noise.png"):
        with pytest.raises(DataError) as caught:
            ImageRef(path=tmp_path / name).load(where=f"{tmp_path}/data.jsonl:1")
        assert f"data.jsonl:1, {tmp_path / name}: image" in str(caught.value)
        assert str(tmp_path) not in reason_of(caught.value)


def test_a_reason_holds_only_what_a_file_can_hold() -> None:
    error = DataError("unknown role", where="data.jsonl:1", found="\ud800")
    assert reason_of(error).encode("utf-8").endswith(b"\\ud800")
