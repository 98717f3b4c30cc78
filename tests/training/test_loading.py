"""Reading for training: real processes share the samples, resume, read ahead, decode once."""

from __future__ import annotations

import json
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.caches import make_manifest, make_record
from support.ranks import RankServer, errors, length_of, seen
from support.runs import make_recipe
from vlsi_cache.data import IndexedConversations, encoder_for, load_data
from vlsi_cache.models import load_backbone
from vlsi_cache.recipe import Recipe
from vlsi_cache.store import CHUNK_TOKENS, create_cache, open_cache, token_bytes
from vlsi_cache.store.cache import reader
from vlsi_cache.store.shards.shard import OpenShard
from vlsi_cache.student.cached import order as grouping
from vlsi_cache.student.cached.batches import CachedBatches
from vlsi_cache.student.cached.order import cache_order
from vlsi_cache.teacher import dump_teacher
from vlsi_cache.training.samples.loader import BatchReader, BatchSampler, make_loader
from vlsi_cache.training.samples.order import ProcessSlice, slice_batches


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize(("num_samples", "batch_size"), [(25, 4), (7, 1), (2, 1)])
def test_processes_divide_an_epoch_without_overlap_or_loss(
    server: RankServer, tmp_path: Path, num_ranks: int, num_samples: int, batch_size: int
) -> None:
    schedule = {"epochs": 2, "batch_size": batch_size}
    codes = server.run(tmp_path, num_ranks, num_samples, schedule=schedule)
    assert codes == [0] * num_ranks
    ranks = seen(tmp_path, num_ranks)
    steps = -(-num_samples // (num_ranks * batch_size))
    assert [len(batches) for batches in ranks] == [2 * steps] * num_ranks
    weight, orders = 0.0, list[list[int]]()
    for epoch in range(2):
        parts = [batches[epoch * steps : (epoch + 1) * steps] for batches in ranks]
        counted: set[int] = set()
        for step in range(steps):
            # a spare is a sample that was there before
            samples = {sample for part in parts for sample in part[step]} - counted
            counted |= samples
            weight -= 1e-3 * sum(samples) / len(samples)
        real = [sample for part in parts for batch in part for sample in batch]
        assert counted == set(range(num_samples))
        if batch_size > 1:
            assert sorted(real) == sorted(counted)
            orders.append(real)
    assert batch_size == 1 or orders[0] != orders[1]
    found = json.loads((tmp_path / "weight.json").read_text())
    assert found == pytest.approx(weight), "every sample weighs alike, and spares nothing"


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_passes_keep_the_bound_and_a_step_is_what_it_is_without_pieces(
    server: RankServer, tmp_path: Path, num_ranks: int
) -> None:
    """Each step takes the same samples, however many passes it takes in each process."""
    found = {}
    for bound in (9, 1000):
        folder = tmp_path / str(bound)
        folder.mkdir()
        schedule = {
            "epochs": 2,
            "batch_size": 4,
            "gradient_accumulation": 2,
            "workers": 1,
            "batch_tokens": bound,
        }
        assert server.run(folder, num_ranks, 26, schedule=schedule) == [0] * num_ranks
        ranks = seen(folder, num_ranks)
        assert len({len(passes) for passes in ranks}) == 1, "nobody waits for a pass"
        for part in (passes for passes in ranks for passes in passes):
            assert len(part) * max(map(length_of, part)) <= bound
        assert {i for passes in ranks for part in passes for i in part} == set(range(26))
        found[bound] = json.loads((folder / "weight.json").read_text())
    assert found[9] == pytest.approx(found[1000]), "all pieces weigh, and spares nothing"


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_killed_processes_go_on_with_the_batches_of_an_unbroken_run(
    server: RankServer, tmp_path: Path, num_ranks: int
) -> None:
    """Killed in the middle of the second epoch, between two checkpoints."""
    schedule = {
        "epochs": 3,
        "batch_size": 2,
        "gradient_accumulation": 2,
        "save_every": 2,
        "workers": 1,
    }
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    for folder in (unbroken, broken):
        folder.mkdir()
    num_samples = 22 * num_ranks  # 11 batches, 6 steps of an epoch
    assert server.run(unbroken, num_ranks, num_samples, schedule=schedule) == [0] * num_ranks
    died = server.run(broken, num_ranks, num_samples, schedule=schedule, kill_after=11 + 7)
    assert died == [-signal.SIGKILL] * num_ranks
    num_done = {path.name for path in broken.glob("checkpoint-*")}
    assert "checkpoint-8" in num_done
    resumed = server.run(broken, num_ranks, num_samples, schedule=schedule)
    assert resumed == [0] * num_ranks
    for whole, parts in zip(seen(unbroken, num_ranks), seen(broken, num_ranks), strict=True):
        before = 11 + 4  # batches of 8 steps
        assert parts[: 11 + 7] == whole[: 11 + 7]
        assert parts[11 + 7 :] == whole[before:]
    weights = [(folder / "weight.json").read_text() for folder in (unbroken, broken)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("task", "codes", "message"),
    [
        ({"damaged": 5}, [1, 1], "sample 5: the sample is damaged"),
        ({"unsound": {"5": "loss"}}, [1, 1], "sample 's5' cannot be learned from in step"),
        ({"file_bytes": 1500, "ranks": [0]}, [1, 1], "no room for the file"),
    ],
    ids=["sample", "loss", "disk"],
)
def test_what_is_wrong_in_one_process_ends_all_with_the_same_line(
    server: RankServer, tmp_path: Path, task: dict[str, Any], codes: list[int], message: str
) -> None:
    schedule = {"steps": 40, "batch_size": 2, "save_every": 1, "workers": 0}
    assert server.run(tmp_path, 2, 12, schedule=schedule, **task) == codes
    said = errors(tmp_path, 2)
    assert said[0] == said[1]
    assert message in said[0]


def test_a_damaged_line_of_metrics_ends_all_processes(server: RankServer, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("no line\nnor this\n", "utf-8")
    schedule = {"steps": 2, "batch_size": 2, "workers": 0}
    assert server.run(tmp_path, 2, 12, schedule=schedule) == [1, 1]
    for said in errors(tmp_path, 2):
        assert "line 1 of the journal is damaged" in said


def test_epochs_go_on_with_another_number_of_processes(server: RankServer, tmp_path: Path) -> None:
    """Killed after 16 of 24 steps, by one process: two have 4 of 12 steps before them."""
    schedule = {"epochs": 2, "batch_size": 2, "save_every": 2, "workers": 0}
    died = server.run(tmp_path, 1, 24, schedule=schedule, kill_after=16)
    assert died == [-signal.SIGKILL]
    assert (tmp_path / "checkpoint-16").is_dir()
    assert server.run(tmp_path, 2, 24, schedule=schedule) == [0, 0]
    assert [len(batches) for batches in seen(tmp_path, 2)] == [4, 4]
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-10",
        "checkpoint-12",
    ]


def test_a_process_that_is_killed_leaves_no_other_waiting(
    server: RankServer, tmp_path: Path
) -> None:
    schedule = {"steps": 40, "batch_size": 2, "workers": 0}
    codes = server.run(tmp_path, 2, 12, schedule=schedule, kill_after=3, ranks=[1])
    assert codes == [1, -signal.SIGKILL]
    assert "another process has ended" in (tmp_path / "error-0.txt").read_text()


def test_a_sample_meets_other_processes_in_other_epochs(server: RankServer, tmp_path: Path) -> None:
    schedule = {"epochs": 6, "batch_size": 2, "workers": 0}
    assert server.run(tmp_path, 2, 24, schedule=schedule) == [0, 0]
    ranks = seen(tmp_path, 2)
    met: dict[int, set[int]] = {}
    for epoch in range(6):
        each = [
            [sample for batch in batches[epoch * 6 : (epoch + 1) * 6] for sample in batch]
            for batches in ranks
        ]
        assert sorted(each[0] + each[1]) == list(range(24)), "every sample once"
        for rank, samples in enumerate(each):
            for sample in samples:
                met.setdefault(sample, set()).add(rank)
    assert sum(len(each) == 2 for each in met.values()) >= 20


def test_each_chunk_is_decoded_about_once_per_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_manifest(num_samples=600, samples_per_shard=150, vocab_size=20, taps=(0, -1))
    long = make_record(manifest, 0, num_tokens=700)
    generator = np.random.default_rng(0)
    writer = create_cache(tmp_path, manifest)
    for shard in range(manifest.num_shards):
        counts = [(i, int(generator.integers(1, 700))) for i in manifest.shard_range(shard)]
        writer.write_shard(
            shard,
            [
                replace(
                    long,
                    sample_id=str(i),
                    response_ids=long.response_ids[:count],
                    distribution=long.distribution[:count],
                )
                for i, count in counts
            ],
        )
    # a cache of which only a part fits, as a large one's would
    room = 24 * CHUNK_TOKENS * token_bytes(manifest)
    monkeypatch.setattr(reader, "DECODED_BYTES", room)
    monkeypatch.setattr(grouping, "DECODED_BYTES", room)
    decoded: Counter[tuple[int, int]] = Counter()
    read_chunk = OpenShard.read_chunk

    def counted(shard: OpenShard, index: int) -> Any:
        decoded[shard.address.shard_index, index] += 1
        return read_chunk(shard, index)

    monkeypatch.setattr(OpenShard, "read_chunk", counted)
    order = cache_order(open_cache(tmp_path))
    assert order.num_samples == 600
    assert len(order.groups) > 2 * order.window
    for num_ranks, most in ((1, 1.5), (3, 1.7)):
        decoded.clear()
        for rank in range(num_ranks):
            cache = open_cache(tmp_path)  # each process has its own
            for batch in slice_batches(order, ProcessSlice(0, 8, rank, num_ranks), 0):
                for index in batch:
                    assert len(cache[index].response_ids) < 700
        num_chunks = sum(
            -(-open_cache(tmp_path).outline(shard).num_tokens // CHUNK_TOKENS)
            for shard in range(manifest.num_shards)
        )
        assert len(decoded) == num_chunks
        assert decoded.total() < most * num_chunks
        assert max(decoded.values()) <= 2 + (num_ranks > 1)


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    recipe = make_recipe(tmp_path_factory.mktemp("loading"), images=True)
    dump_teacher(recipe, lambda _: None)
    return recipe


@pytest.mark.parametrize("method", ["fork", "spawn"])
# Python 3.12 and later warn of every fork beside threads
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_workers_however_they_start_give_the_batches_of_this_process(
    dumped: Recipe, method: str
) -> None:
    student = load_backbone(dumped.student, "student", torch.device("cpu"))
    dataset = IndexedConversations(load_data(dumped.data))
    collate = CachedBatches(
        encoder_for(student, dumped.data), open_cache(dumped.cache_path), "sample"
    )
    order = cache_order(open_cache(dumped.cache_path))

    def batches(workers: int) -> list[Any]:
        sampler = BatchSampler(order, ProcessSlice(seed=0, batch_size=5))
        loader = make_loader(
            BatchReader(dataset, collate), sampler, workers=workers, start_method=method
        )
        epochs = []
        for sampler.epoch in range(2):
            epochs += list(loader)
        return epochs

    here = batches(0)  # and with it the cache is in use, as a fork may find it
    there = batches(1)
    assert len(here) == len(there) == 6
    for one, other in zip(here, there, strict=True):
        assert one.keys() == other.keys()
        assert torch.equal(one["labels"], other["labels"])
        for ours, theirs in zip(one["targets"], other["targets"], strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(one["inputs"]["input_ids"], other["inputs"]["input_ids"])
