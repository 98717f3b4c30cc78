"""A student that trains while another process still writes the cache."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from support.caches import make_manifest, make_record
from support.commands import Job
from support.publisher import begin_copy, start_publisher
from support.ranks import RankServer, seen
from support.runs import make_recipe
from vlsi_cache.errors import CacheError, StageError
from vlsi_cache.recipe import InteractionSection, Recipe, recipe_from_mapping
from vlsi_cache.store import create_cache, open_cache
from vlsi_cache.student import train_student
from vlsi_cache.student.cached.arrivals import ArrivalOrder, recorded_order
from vlsi_cache.student.cached.opening import wait_for_cache
from vlsi_cache.teacher import dump_teacher
from vlsi_cache.training.samples.loader import BatchSampler
from vlsi_cache.training.samples.order import ProcessSlice, slice_batches


def _arrivals(path: Path) -> list[list[int]]:
    return [json.loads(line)["shards"] for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards of six samples, the last of five; one sample failed."""
    path = tmp_path_factory.mktemp("complete")
    manifest = make_manifest(num_samples=23, samples_per_shard=6)
    writer = create_cache(path, manifest)
    for shard in range(manifest.num_shards):
        records = [make_record(manifest, index) for index in manifest.shard_range(shard)]
        if shard == 1:
            lost = records[2]
            records[2] = replace(
                lost,
                response_ids=lost.response_ids[:0],
                distribution=lost.distribution[:0],
                failure="broken image",
            )
        writer.write_shard(shard, records)
    return path


LOST = 8


@pytest.mark.parametrize(("num_ranks", "batch_size"), [(1, 2), (2, 3)])
def test_the_first_epoch_follows_the_shards_as_they_come(
    server: RankServer, complete: Path, tmp_path: Path, num_ranks: int, batch_size: int
) -> None:
    cache = tmp_path / "cache"
    begin_copy(complete, cache, [2])
    arrivals = tmp_path / "arrivals.jsonl"
    publisher = start_publisher(complete, cache, arrivals, [3, 0, 1])
    schedule = {"epochs": 2, "batch_size": batch_size, "workers": 1}
    codes = server.run(tmp_path, num_ranks, 23, schedule=schedule, cache=str(cache))
    assert codes == [0] * num_ranks
    assert publisher.end() == ""
    assert publisher.returncode == 0
    assert _arrivals(arrivals) == [[2], [3], [0], [1]]

    ranks = seen(tmp_path, num_ranks)
    steps = -(-23 // (num_ranks * batch_size))
    assert [len(batches) for batches in ranks] == [2 * steps] * num_ranks
    recorded = set(range(23)) - {LOST}
    for epoch in range(2):
        parts = [batches[epoch * steps : (epoch + 1) * steps] for batches in ranks]
        counted = [sample for part in parts for batch in part for sample in batch]
        assert set(counted) == recorded
        # the place of the sample that failed may be a spare's
        assert len(counted) - len(recorded) in (0, 1)
    came = [part for shard in (2, 3, 0, 1) for part in [shard] * (5 if shard in (1, 3) else 6)]
    for step in range(steps - 1):
        now = [sample // 6 for batches in ranks for sample in batches[step]]
        assert all(shard in came[: (step + 1) * num_ranks * batch_size] for shard in now)


def test_a_resumed_stage_keeps_the_order_in_which_shards_came(
    complete: Path, tmp_path: Path
) -> None:
    cache, path = tmp_path / "cache", tmp_path / "arrivals.jsonl"
    begin_copy(complete, cache, [1])
    settings = InteractionSection(follow=True)
    order = recorded_order(open_cache(cache), settings, tmp_path)
    batches = slice_batches(order, ProcessSlice(0, 2), 0)
    first = [next(batches), next(batches)]
    begin_copy(complete, cache, [3])
    first.append(next(batches))
    begin_copy(complete, cache, [0, 2])
    first += batches
    with path.open("a") as file:
        file.write('{"shards": [')  # torn by a kill
    again = recorded_order(open_cache(cache), InteractionSection(), tmp_path)
    assert isinstance(again, ArrivalOrder), "whether or not it is asked for again"
    assert list(slice_batches(again, ProcessSlice(0, 2), 0)) == first
    assert _arrivals(path) == [[1], [3], [0, 2]]


@pytest.mark.parametrize(
    "junk",
    [
        b"junk",
        b"\0\0",
        b"\xff",
        b'{"shards": null}',
        b'{"shards": [9]}',
        b'{"shards": [-1]}',
        b"[1]",
        b'{"shards": [1]}\n{"shards": [1]}',
    ],
)
def test_a_damaged_record_of_arrivals_is_named(junk: bytes, complete: Path, tmp_path: Path) -> None:
    (tmp_path / "arrivals.jsonl").write_bytes(junk + b"\n")
    order = recorded_order(open_cache(complete), InteractionSection(follow=True), tmp_path)
    with pytest.raises(
        StageError, match=r"arrivals\.jsonl: the record of the shards.*Delete the st"
    ):
        list(slice_batches(order, ProcessSlice(0, 2), 0))


def test_places_of_failed_samples_are_given_to_others(complete: Path, tmp_path: Path) -> None:
    """A followed cache counts failures to come. Half of the steps must not learn nothing."""
    (tmp_path / "arrivals.jsonl").write_bytes(b'{"shards": [0, 1, 2, 3]}\n')
    order = recorded_order(open_cache(complete), InteractionSection(), tmp_path)
    order.num_samples = 44
    batches = list(BatchSampler(order, ProcessSlice(0, 2)))
    assert len(batches) == 22
    assert all(pick.weight for batch in batches for pick in batch)
    first, second = (
        [pick.index for batch in half for pick in batch] for half in (batches[:11], batches[11:])
    )
    assert sorted(first) == sorted(second) == sorted(set(range(23)) - {LOST})
    assert first != second


def test_a_complete_cache_is_not_followed(complete: Path, tmp_path: Path) -> None:
    order = recorded_order(open_cache(complete), InteractionSection(follow=True), tmp_path)
    assert not isinstance(order, ArrivalOrder)
    assert order.num_samples == 22
    assert not list(tmp_path.iterdir())


def test_waiting_is_told_and_ends_in_an_error_that_names_what_is_missing(
    complete: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begin_copy(complete, tmp_path / "cache", [0, 2])
    settings = InteractionSection(follow=True, follow_timeout_seconds=0.2)
    order = recorded_order(open_cache(tmp_path / "cache"), settings, tmp_path)
    caplog.set_level(logging.INFO, "vlsi_cache")
    with pytest.raises(
        CacheError, match=r"no new shard has arrived for 0\.2 seconds.*missing: 1, 3"
    ):
        list(slice_batches(order, ProcessSlice(0, 1), 0))
    assert "waiting for the cache, 2 of 4 shards are there" in caplog.text


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    recipe = make_recipe(tmp_path_factory.mktemp("following"), cache={"samples_per_shard": 4})
    dump_teacher(recipe, lambda _: None)
    train_student(recipe.model_copy(update={"stages": ["verbalization"]}))
    return recipe


def _followed(recipe: Recipe, folder: Path) -> Recipe:
    """A run of stage two on a cache in ``folder``, over and over again through the data."""
    raw = json.loads(recipe.model_dump_json())
    raw["output"] = str(folder)
    raw["student"] |= {"verbalizers": str(recipe.student_verbalizers_path), "taps": None}
    raw["stages"] = ["verbalization", "interaction"]
    raw["interaction"] |= {"steps": 8, "batch_size": 2, "save_every": 1}
    return recipe_from_mapping(raw, where="test")


def test_a_student_killed_while_it_follows_ends_with_the_weights_of_an_unbroken_run(
    dumped: Recipe, tmp_path: Path
) -> None:
    recipe = _followed(dumped, tmp_path / "broken")
    arrivals = recipe.output / "interaction" / "arrivals.jsonl"
    begin_copy(dumped.cache_path, recipe.cache_path, [1])
    publisher = start_publisher(dumped.cache_path, recipe.cache_path, arrivals, [2])
    process = _start(recipe)
    assert publisher.end() == ""
    assert publisher.returncode == 0
    _wait_for_line("waiting for the cache, 2 of 3 shards are there", process)
    assert list((recipe.output / "interaction").glob("checkpoint-*/trainer_state.json"))
    process.send_signal(signal.SIGKILL)
    process.end()
    process = _start(recipe)
    _wait_for_line("waiting for the cache, 2 of 3 shards are there", process)
    publisher = start_publisher(dumped.cache_path, recipe.cache_path, arrivals, [0])
    output = process.end()
    assert process.returncode == 0, output
    assert publisher.end() == ""
    assert publisher.returncode == 0
    assert _arrivals(arrivals) == [[1], [2], [0]]

    # what came when is all that the order hangs on
    unbroken = _followed(dumped, tmp_path / "unbroken")
    begin_copy(dumped.cache_path, unbroken.cache_path, [0, 1, 2])
    (unbroken.output / "interaction").mkdir()
    shutil.copy(arrivals, unbroken.output / "interaction")
    weights = load_file(train_student(unbroken) / "model.safetensors")
    found = load_file(recipe.output / "interaction" / "model" / "model.safetensors")
    assert all(torch.equal(value, found[name]) for name, value in weights.items())


def _start(recipe: Recipe) -> Job:
    path = recipe.output / "recipe.yaml"
    path.write_text(yaml.safe_dump(json.loads(recipe.model_dump_json())), encoding="utf-8")
    return Job("-m", "vlsi_cache.cli", "train-student", "--follow", "-r", path)


def _wait_for_line(sought: str, process: Job) -> None:
    for line in process.stdout:
        if sought in line:
            return
    raise AssertionError(f"ended without a word of {sought!r}")


def test_a_cache_that_has_not_begun_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    later = threading.Timer(0.7, lambda: create_cache(path, make_manifest()))
    later.start()
    cache = wait_for_cache(path, timeout_seconds=60)
    later.join()
    assert cache.missing_shards() == list(range(cache.manifest.num_shards))
    with pytest.raises(CacheError, match="no cache here"):
        wait_for_cache(tmp_path / "never", timeout_seconds=0.1)


def test_without_follow_an_incomplete_cache_is_still_refused(
    dumped: Recipe, tmp_path: Path
) -> None:
    begin_copy(dumped.cache_path, tmp_path / "cache", [1])
    raw = dumped.model_copy(
        update={"cache": dumped.cache.model_copy(update={"path": tmp_path / "cache"})}
    )
    with pytest.raises(CacheError, match=r"2 of 3 shards missing.*--follow"):
        train_student(raw)
