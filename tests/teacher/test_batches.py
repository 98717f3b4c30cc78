"""The teacher's batches: like lengths together, bounded, halved where the memory is too small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.caches import make_manifest, make_record
from support.runs import make_recipe, with_section
from vlsi_cache.data import TokenBatches, encoder_of, load_data
from vlsi_cache.distribution import ENTROPY_STEP, LABEL_STEP
from vlsi_cache.errors import CacheError
from vlsi_cache.recipe import Recipe
from vlsi_cache.store import (
    CacheWriter,
    Pack,
    SampleRecord,
    create_cache,
    open_cache,
    pack_shard,
    verify_cache,
)
from vlsi_cache.teacher import dump_teacher
from vlsi_cache.teacher.batches import KeyedBatches, ShardBatches
from vlsi_cache.teacher.filling import DumpProgress
from vlsi_cache.teacher.publishing import Publisher
from vlsi_cache.training import TokenBound, padded_tokens


@pytest.fixture(scope="module", params=[False, True], ids=["text", "images"])
def dumped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A cache of every sample by itself; its conversations have one to three turns."""
    folder = tmp_path_factory.mktemp("batches")
    recipe = make_recipe(folder, images=request.param, num_samples=17, cache={"batch_size": 1})
    dump_teacher(recipe)
    return recipe


def _again(recipe: Recipe, path: Path, **changes: Any) -> Recipe:
    """The same teacher and verbalizers, with another cache."""
    recipe = with_section(recipe, "teacher", verbalizers=recipe.teacher_verbalizers_path, taps=None)
    return with_section(recipe, "cache", path=path, **changes)


def _assert_same_to_rounding(found: Path, wanted: Path) -> None:
    """Few draws fall within rounding of a boundary. Taps share them, so the next ones differ too.

    All weights are equal to rounding, because the number of draws is.
    """
    one, other = open_cache(found), open_cache(wanted)
    assert len(one) == len(other)
    differing = []
    for record, alone in zip(one, other, strict=True):
        assert (record.sample_id, record.key) == (alone.sample_id, alone.key)
        if record.failure is not None:
            continue
        np.testing.assert_array_equal(record.response_ids, alone.response_ids)
        ours, theirs = record.distribution, alone.distribution
        differing.append((ours.token_ids != theirs.token_ids).any(-1).ravel())
        np.testing.assert_allclose(ours.weights(), theirs.weights(), atol=1e-5)
        # both are rounded to a step, by the same random number
        np.testing.assert_allclose(ours.entropy, theirs.entropy, atol=ENTROPY_STEP + 1e-4)
        np.testing.assert_allclose(ours.label_log_prob, theirs.label_log_prob, atol=LABEL_STEP)
        assert np.mean(ours.entropy != theirs.entropy) < 0.02
    assert np.mean(np.concatenate(differing)) < 0.02


@pytest.mark.parametrize(
    "batching", [{"batch_size": 5}, {"batch_size": 100, "batch_tokens": 128, "workers": 1}]
)
def test_a_record_does_not_depend_on_the_company_of_its_sample(
    dumped: Recipe, tmp_path: Path, batching: dict[str, Any]
) -> None:
    recipe = _again(dumped, tmp_path / "cache", **batching)
    dump_teacher(recipe)
    _assert_same_to_rounding(tmp_path / "cache", Path(dumped.cache_path))


def test_a_half_made_cache_goes_on_with_another_batch_size(dumped: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "cache"
    dump_teacher(_again(dumped, path, batch_size=8))
    for name in ("index.json", "shards/00001.zarr.zip", "shards/00001.json"):
        (path / name).unlink()
    dump_teacher(_again(dumped, path, batch_size=2, batch_tokens=60))
    assert verify_cache(path).complete
    assert open_cache(path).manifest.batch_size == 8, "the manifest keeps the first run's"
    _assert_same_to_rounding(path, Path(dumped.cache_path))


def _batches(recipe: Recipe, bound: TokenBound, batch_size: int) -> list[list[tuple[int, int]]]:
    """Index and padded width of every sample, batch by batch, as the pass reads them."""
    data = load_data(recipe.data)
    writer = create_cache(recipe.cache_path, open_cache(recipe.cache_path).manifest)
    read = KeyedBatches(
        data, TokenBatches(encoder_of(recipe.teacher, recipe.data)), bound, skip=False
    )
    shards = list(range(writer.manifest.num_shards))
    (Path(recipe.cache_path) / "index.json").unlink(missing_ok=True)
    for path in (Path(recipe.cache_path) / "shards").iterdir():
        path.unlink()
    sampler = ShardBatches(data, writer, shards, batch_size, lambda is_there, _: is_there)
    found = []
    for indices in sampler:
        for batch in read(indices):
            assert batch.inputs is not None
            width = batch.inputs["inputs"]["input_ids"].shape[1]
            assert padded_tokens(batch.inputs) == width * len(batch.indices)
            found.append([(index, width) for index in batch.indices])
    return found


def test_batches_keep_the_bound_and_put_like_lengths_together(
    dumped: Recipe, tmp_path: Path
) -> None:
    recipe = _again(dumped, tmp_path / "cache", samples_per_shard=17)
    dump_teacher(recipe)
    alone = {index: width for ((index, width),) in _batches(recipe, TokenBound(None), 1)}
    bound = 2 * max(alone.values()) + 5
    found = _batches(recipe, TokenBound(bound), 17)
    assert sorted(index for batch in found for index, _ in batch) == list(range(17))
    assert all(sum(width for _, width in batch) <= bound for batch in found)
    assert len(found) < 17
    unsorted = sum(
        len(part) * max(alone[index] for index in part)
        for part in (range(start, min(start + 3, 17)) for start in range(0, 17, 3))
    )
    sorted_ = sum(width for batch in _batches(recipe, TokenBound(None), 3) for _, width in batch)
    assert sorted_ - sum(alone.values()) < 0.5 * (unsorted - sum(alone.values()))


def test_a_sample_longer_than_the_bound_passes_alone(dumped: Recipe, tmp_path: Path) -> None:
    recipe = _again(dumped, tmp_path / "cache")
    dump_teacher(recipe)
    assert all(len(batch) == 1 for batch in _batches(recipe, TokenBound(1), 4))


class GatedWriter(CacheWriter):
    """A writer that begins to write when the gate opens."""

    gate: threading.Event

    def write_shard(
        self, shard_index: int, records: Sequence[SampleRecord], pack: Pack = pack_shard
    ) -> None:
        self.gate.wait()
        super().write_shard(shard_index, records, pack)


def test_the_pass_goes_on_while_a_shard_is_written_and_waits_for_it_before_the_next(
    tmp_path: Path,
) -> None:
    manifest = make_manifest(num_samples=6, samples_per_shard=2)
    writer = create_cache(tmp_path, manifest)
    writer.__class__ = GatedWriter
    assert isinstance(writer, GatedWriter)
    writer.gate = threading.Event()
    shards = [
        [make_record(manifest, index) for index in manifest.shard_range(shard)] for shard in (0, 1)
    ]
    published: list[int] = []
    with Publisher(writer, published.append) as publisher:
        publisher.submit(0, shards[0])  # returns, although nothing can be written yet
        publisher.raise_problem()
        assert not writer.has_shard(0)
        writer.gate.set()
        publisher.submit(1, shards[1])
        assert writer.has_shard(0), "no more than one is on its way"
    assert published == [2, 2]
    assert writer.missing_shards() == [2]


def test_a_shard_that_cannot_be_written_stops_the_pass_with_its_own_message(
    tmp_path: Path,
) -> None:
    manifest = make_manifest(num_samples=4, samples_per_shard=2)
    writer = create_cache(tmp_path, manifest)
    sound = make_record(manifest, 0)
    negative = replace(sound.distribution, entropy=sound.distribution.entropy - 100)
    broken = replace(sound, distribution=negative)
    with (
        pytest.raises(CacheError, match="entropy"),
        Publisher(writer, lambda _: None) as publisher,
    ):
        publisher.submit(0, [broken, make_record(manifest, 1)])
    assert writer.missing_shards() == [0, 1]


def test_a_dump_reads_the_next_batches_and_then_stops_where_a_shard_cannot_be_written(
    dumped: Recipe, tmp_path: Path
) -> None:
    """The name of the folder is a file's by the time the first shard is whole."""
    recipe = _again(dumped, tmp_path / "cache", batch_size=1)

    def spoil(progress: DumpProgress) -> None:
        if progress.num_samples == 1:
            (tmp_path / "cache" / "shards").write_text("")

    with pytest.raises(CacheError, match="shards"):
        dump_teacher(recipe, spoil)


LIMITED = """
import json, logging, re, resource, sys, threading
from pathlib import Path
import torch
import zarr
from vlsi_cache.errors import VlsiCacheError
from vlsi_cache.recipe import recipe_from_mapping
from vlsi_cache.teacher import dump_teacher

logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
torch.set_num_threads(1)
threading.stack_size(2**20)  # a thread reserves eight times as much otherwise
# a pool starts its threads one by one, and later ones would find no room: one, and at once
zarr.config.set({"threading.max_workers": 1})
zarr.array([0.0])

def limit(progress):
    if progress.num_samples == 16:  # a shard is published: all that is needed is loaded
        held = int(re.search(r"VmSize:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
        most = held * 1024 + 90 * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))

for raw in json.loads(Path(sys.argv[1]).read_text()):
    try:
        dump_teacher(recipe_from_mapping(raw, where="test"), limit)
    except VlsiCacheError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
"""


@pytest.fixture
def long(tmp_path: Path) -> Recipe:
    """Two shards of short samples, then one of seven long ones and one that is very long."""
    recipe = make_recipe(tmp_path, num_samples=1, cache={"samples_per_shard": 8, "batch_size": 8})
    dump_teacher(recipe)
    config = tmp_path / "teacher" / "config.json"
    changed = {**json.loads(config.read_text()), "max_position_embeddings": 100_000}
    config.write_text(json.dumps(changed))
    rows = []
    for number in range(24):
        count = 1 if number < 16 else 800 if number == 20 else 100
        messages = [
            {"role": "user", "content": f"What is {number}?"},
            {"role": "assistant", "content": "What colour is " * count},
        ]
        rows.append(json.dumps({"id": f"s{number}", "messages": messages}) + "\n")
    (tmp_path / "data.jsonl").write_text("".join(rows))
    return recipe


def test_out_of_memory_halves_the_batch_down_to_one_sample(long: Recipe, tmp_path: Path) -> None:
    """A real limit on the process's memory, in a process of its own."""
    skips = _again(long, tmp_path / "skips", on_error="skip")
    stops = _again(long, tmp_path / "stops")
    file = tmp_path / "recipes.json"
    file.write_text(f"[{skips.model_dump_json()}, {stops.model_dump_json()}]")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(file)],
        # what threads reserve is no measure of what they use
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("cpu: out of memory at 8 samples of") == 2, "once for each command"
    assert "skipped sample 's20': out of memory at this sample alone, on cpu" in done.stdout
    assert "sample 's20': out of memory at this sample alone, on cpu; found" in done.stdout
    cache = open_cache(tmp_path / "skips")
    assert list(cache.failures()) == [20]
    dump_teacher(_again(long, tmp_path / "whole", batch_tokens=1))
    _assert_same_to_rounding(tmp_path / "skips", tmp_path / "whole")
