from __future__ import annotations

import math
import multiprocessing
import operator
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from support.caches import make_cache, make_manifest, make_record, sha256
from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.errors import CacheError
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.store import SampleRecord, create_cache, open_cache
from vlsi_cache.store.shards.layout import CHUNK_BYTES, shard_layout

FLOAT16_MIN = float(np.finfo(np.float16).min)


def assert_same(read: SampleRecord, written: SampleRecord) -> None:
    """Equal but for the rounding that the format owns to."""
    assert (read.sample_id, read.key) == (written.sample_id, written.key)
    np.testing.assert_array_equal(read.response_ids, written.response_ids)
    found, wanted = read.distribution, written.distribution
    k = wanted.k
    np.testing.assert_array_equal(found.token_ids[..., :k], wanted.token_ids[..., :k])
    np.testing.assert_array_equal(found.token_ids[..., k:], np.sort(wanted.token_ids[..., k:]))
    for name, rounded in {
        "top_log_probs": np.maximum(wanted.top_log_probs, FLOAT16_MIN).astype(np.float16),
        "label_log_prob": -np.rint(np.minimum(-wanted.label_log_prob * 4, 254)) / 4,
        "entropy": np.rint(wanted.entropy * 8) / 8,
    }.items():
        assert getattr(found, name).dtype == np.float32
        np.testing.assert_array_equal(getattr(found, name), rounded.astype(np.float32))


@st.composite
def records_of(draw: st.DrawFn, manifest: CacheManifest, index: int) -> SampleRecord:
    num_tokens = draw(st.integers(0, 4))
    leading = (num_tokens, len(manifest.taps))
    k, m = manifest.sampling.k, manifest.sampling.m
    log_prob = st.floats(-1e6, 0, width=32) | st.just(-np.inf)
    token = st.integers(0, manifest.tokenizer.vocab_size - 1)
    nats = st.floats(0, float(np.float32(np.log(manifest.tokenizer.vocab_size))), width=32)
    return SampleRecord(
        sample_id=draw(st.text(max_size=5)),
        key=sha256(str(index)),
        response_ids=draw(hnp.arrays(np.int32, num_tokens, elements=token)),
        distribution=SparseDistribution(
            token_ids=draw(hnp.arrays(np.int32, (*leading, k + m), elements=token)),
            top_log_probs=draw(hnp.arrays(np.float32, (*leading, k), elements=log_prob)),
            entropy=draw(hnp.arrays(np.float32, leading, elements=nats)),
            label_log_prob=draw(hnp.arrays(np.float32, leading, elements=log_prob)),
        ),
    )


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    k = data.draw(st.integers(0, 3))
    manifest = make_manifest(
        num_samples=data.draw(st.integers(1, 5)),
        samples_per_shard=data.draw(st.integers(1, 3)),
        taps=data.draw(st.sampled_from([(-1,), (0, -1), (2, 6, -1)])),
        k=k,
        m=data.draw(st.integers(k == 0, 3)),
        vocab_size=data.draw(st.sampled_from([6, 151_936])),
    )
    path = tmp_path_factory.mktemp("caches") / "cache"
    writer = create_cache(path, manifest)
    records = [data.draw(records_of(manifest, i)) for i in range(manifest.dataset.num_samples)]
    for shard in manifest.num_shards - 1 - np.arange(manifest.num_shards):  # any order will do
        part = manifest.shard_range(int(shard))
        writer.write_shard(int(shard), records[part.start : part.stop])
    cache = open_cache(path)
    for index in data.draw(st.permutations(range(len(cache)))):
        assert_same(cache[index], records[index])
    in_shards = [record for shard in cache.iter_shards() for record in shard]
    for read, written in zip(in_shards, records, strict=True):
        assert_same(read, written)
    assert cache.is_complete
    assert cache.num_tokens == sum(len(record.response_ids) for record in records)


@pytest.fixture(scope="module")
def long_samples() -> tuple[CacheManifest, list[SampleRecord]]:
    """Samples that start, end and span at, within and across chunks of 4,096 tokens."""
    manifest = make_manifest(num_samples=6, samples_per_shard=6, vocab_size=20, taps=(0, -1), m=3)
    counts = [4000, 96, 8300, 0, 3988, 0]
    return manifest, [make_record(manifest, i, num_tokens=count) for i, count in enumerate(counts)]


def test_samples_longer_than_a_chunk_are_whole(tmp_path: Path, long_samples) -> None:
    manifest, records = long_samples
    create_cache(tmp_path, manifest).write_shard(0, records)
    cache = open_cache(tmp_path)
    for index in (5, 2, 0, 4, 1, 3):
        assert_same(cache[index], records[index])


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        make_cache(tmp_path / name)
        files = sorted(p for p in (tmp_path / name).rglob("*") if p.is_file())
        contents.append([(p.relative_to(tmp_path / name), p.read_bytes()) for p in files])
    assert contents[0] == contents[1]


def test_records_may_be_written_into_without_changing_the_cache(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    cache[0].distribution.token_ids[:] = 0
    cache[0].response_ids[:] = 0
    assert_same(cache[0], make_record(cache.manifest, 0))


def test_a_sample_is_found_by_its_name(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    assert_same(cache["sample-3"], make_record(cache.manifest, 3))


def test_a_name_that_is_not_there_is_an_error_that_shows_what_names_look_like(
    tmp_path: Path,
) -> None:
    with pytest.raises(CacheError, match=r"no sample 'nobody'.*look like 'sample-0', 'sample-1'"):
        make_cache(tmp_path)["nobody"]


@pytest.mark.parametrize("index", [5, -6])
def test_a_sample_beyond_the_dataset_is_an_index_error(tmp_path: Path, index: int) -> None:
    with pytest.raises(IndexError):
        make_cache(tmp_path)[index]


def test_a_cache_counts_from_its_end_too_and_refuses_slices(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    assert cache[-1].sample_id == cache[len(cache) - 1].sample_id
    assert cache[-len(cache)].sample_id == cache[0].sample_id
    with pytest.raises(TypeError, match="by index, key or name of one sample, not by slice"):
        cache[0:2]  # type: ignore[index]
    assert repr(cache) == f"<Cache {tmp_path}: {len(cache)} samples, 3 taps>"


def test_a_cache_is_a_sequence_of_its_samples(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    assert len(cache) == 5
    assert [record.sample_id for record in cache] == [f"sample-{i}" for i in range(5)]


def test_threads_share_a_cache(tmp_path: Path) -> None:
    manifest = make_manifest(num_samples=12, samples_per_shard=2)
    cache = make_cache(tmp_path, manifest)
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(12), 8)).tolist()
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda index: cache[index].key, order))
    assert keys == [sha256(f"conversation {index}") for index in order]


@pytest.mark.parametrize("method", ["fork", "spawn"])
# Python 3.12 and later warn of every fork beside threads; Zarr resets its own after one
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_cache_in_use_travels_to_another_process(tmp_path: Path, method: str) -> None:
    cache = make_cache(tmp_path)
    here = cache[3]
    with multiprocessing.get_context(method).Pool(1) as pool:
        there = pool.apply_async(operator.getitem, [cache, 3]).get(timeout=400)
    assert_same(there, here)


def test_a_pickled_cache_holds_its_path_only(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    list(cache)
    assert len(pickle.dumps(cache)) < 1000


def test_opening_a_cache_reads_no_shard(tmp_path: Path) -> None:
    make_cache(tmp_path)
    for file in (tmp_path / "shards").rglob("*"):
        if file.is_file():
            file.write_bytes(b"not a shard, and not a seal")
    assert len(open_cache(tmp_path)) == 5


def test_samples_go_by_index_key_and_name_as_soon_as_they_are_published(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, shards=[1])
    keys = [make_record(cache.manifest, index).key for index in range(5)]
    assert list(cache.keys()) == keys[2:4]
    assert list(cache.names()) == ["sample-2", "sample-3"]
    assert [record.sample_id for record in cache] == ["sample-2", "sample-3"]
    for present in (3, keys[3], "sample-3"):
        assert present in cache
    for absent in ("sample-0", keys[0], keys[3].upper(), 0, 5, -1, None):
        assert absent not in cache
    make_cache(tmp_path)
    assert list(cache.keys()) == keys
    for index, key in enumerate(keys):
        for asked in (index, key, f"sample-{index}"):
            assert_same(cache[asked], make_record(cache.manifest, index))
    assert dict(cache).keys() == set(keys)


def test_equal_conversations_share_a_key_that_gives_the_first(tmp_path: Path) -> None:
    manifest = make_manifest(num_samples=3, samples_per_shard=3)
    first, *others = [make_record(manifest, index) for index in range(3)]
    writer = create_cache(tmp_path, manifest)
    writer.write_shard(0, [first, *(replace(other, key=first.key) for other in others)])
    cache = open_cache(tmp_path)
    assert list(cache.keys()) == [first.key] * 3
    assert cache[first.key].sample_id == "sample-0"
    assert cache["sample-2"].sample_id == "sample-2"


@pytest.mark.parametrize(("num_taps", "k"), [(1, 1), (4, 4096), (4, 4097), (100, 10_000)])
def test_no_chunk_is_larger_than_readers_take(num_taps: int, k: int) -> None:
    taps = (*range(num_taps - 1), -1)
    manifest = make_manifest(taps=taps, k=k, m=255, vocab_size=50_000)
    layout = shard_layout(manifest, num_samples=10**8, num_tokens=10**9, id_bytes=10**9)
    for name, array in layout.items():
        chunk_bytes = math.prod(array.chunks) * np.dtype(array.dtype).itemsize
        assert 0 < chunk_bytes <= CHUNK_BYTES, name


def test_a_shard_that_no_reader_takes_is_not_written(tmp_path: Path) -> None:
    manifest = make_manifest(num_samples=10_000, samples_per_shard=10_000)
    empty = replace(make_record(manifest, 0, num_tokens=0), failure="\U0001f95d" * 300)
    records = [replace(empty, key=sha256(str(index))) for index in range(10_000)]
    writer = create_cache(tmp_path, manifest)
    with pytest.raises(CacheError, match=r"00000.*beyond the bounds of readers.*fewer samples per"):
        writer.write_shard(0, records)
    assert writer.missing_shards() == [0]


def test_a_name_that_two_samples_share_always_gives_the_first(tmp_path: Path) -> None:
    manifest = make_manifest()
    writer = create_cache(tmp_path, manifest)
    for shard in writer.missing_shards():
        part = manifest.shard_range(shard)
        records = [replace(make_record(manifest, i), sample_id=str(i % 3)) for i in part]
        writer.write_shard(shard, records)
    cache = open_cache(tmp_path)
    wanted = [make_record(manifest, index).key for index in range(5)]
    assert cache["0"].key == wanted[0]
    assert cache[wanted[4]].key == wanted[4]  # all shards' names are read
    assert [cache[name].key for name in "012"] == wanted[:3]


def test_a_cache_counts_what_it_holds_and_proves_itself(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    statistics = cache.statistics()
    assert statistics.num_tokens == sum(len(record.response_ids) for record in cache)
    assert statistics.num_samples == len(cache)
    outlines = [cache.outline(shard) for shard in range(cache.manifest.num_shards)]
    assert sum(outline.num_tokens for outline in outlines) == statistics.num_tokens
    assert not any(outline.failed for outline in outlines)
    assert cache.verify().sound
    (tmp_path / "shards" / "00001.zarr.zip").unlink()
    assert not cache.verify().sound


def test_importing_the_package_is_cheap_and_open_cache_is_there() -> None:
    code = (
        "import sys, vlsi_cache\n"
        "assert not {'numpy', 'pydantic', 'zarr', 'torch'} & set(sys.modules)\n"
        "assert 'open_cache' in dir(vlsi_cache)\n"
        "from vlsi_cache import open_cache\n"
        "from vlsi_cache.store import open_cache as same\n"
        "assert open_cache is same and 'torch' not in sys.modules\n"
        "assert not hasattr(vlsi_cache, 'nothing')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")
