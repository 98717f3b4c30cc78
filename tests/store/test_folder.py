from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.caches import make_cache, make_manifest
from vlsi_cache.errors import CacheError
from vlsi_cache.store import create_cache, open_cache


def test_a_path_without_a_folder_is_not_a_cache(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"nowhere: no cache here\. .*dump-teacher"):
        open_cache(tmp_path / "nowhere")


def test_a_runs_folder_says_where_its_cache_is(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache")
    with pytest.raises(CacheError, match=f"{tmp_path / 'cache'} is one: give that path"):
        open_cache(tmp_path)


def test_a_folder_without_a_manifest_is_not_a_whole_cache(tmp_path: Path) -> None:
    make_cache(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(CacheError, match=r"manifest\.json is missing"):
        open_cache(tmp_path)
    with pytest.raises(CacheError, match=r"not empty, and holds no manifest\.json"):
        create_cache(tmp_path, make_manifest())


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "manifest is an empty file"),
        (b'{"format_version": 1', "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "expected an object; found list"),
        (b"{}", "unknown version; expected 1, 2 or 3; found None"),
        (b'{"format_version": 4, "anything": 0}', "unknown version; expected 1, 2 or 3; found 4"),
        (b'{"format_version": true}', "unknown version"),
    ],
)
def test_a_garbage_manifest_is_refused_in_one_line(
    tmp_path: Path, content: bytes, fault: str
) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(CacheError, match=fault) as caught:
        open_cache(tmp_path)
    assert "\n" not in str(caught.value)


def test_every_problem_of_a_manifest_is_named_with_its_path(tmp_path: Path) -> None:
    fields = make_manifest().model_dump(mode="json")
    fields["sampling"]["k"] = "four"
    fields["samples_per_shard"] = 0
    del fields["taps"]
    (tmp_path / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(CacheError) as caught:
        open_cache(tmp_path)
    for path in ("sampling.k: ", "samples_per_shard: ", "taps: "):
        assert path in str(caught.value)


def test_an_incomplete_cache_says_what_is_missing_and_reads_what_is_there(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, shards=[1])
    assert not cache.is_complete
    assert cache.missing_shards() == [0, 2]
    assert cache[3].sample_id == "sample-3"
    assert [shard.sample_ids for shard in cache.iter_shards()] == [("sample-2", "sample-3")]
    with pytest.raises(CacheError, match=r"shard 0 is not written yet.*Run dump-teacher again"):
        cache[0]
    with pytest.raises(CacheError, match=r"no sample 'sample-0'.*2 shards not written yet"):
        cache["sample-0"]


def test_a_cache_without_its_first_shard_opens(tmp_path: Path) -> None:
    create_cache(tmp_path, make_manifest())
    cache = open_cache(tmp_path)
    assert cache.missing_shards() == [0, 1, 2]
    assert cache.num_tokens == 0
    with pytest.raises(CacheError, match="no shard is written"):
        cache["sample-0"]


def test_a_reader_sees_shards_that_come_while_it_is_open(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, shards=[])
    make_cache(tmp_path)
    assert cache.is_complete
    assert cache[4].sample_id == "sample-4"


def test_a_cache_of_no_samples_is_complete(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, make_manifest(num_samples=0))
    assert cache.is_complete
    assert list(cache) == []


def test_size_counts_manifest_and_shards_but_not_the_processor_nor_leftovers(
    tmp_path: Path,
) -> None:
    cache = make_cache(tmp_path)
    counted = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    for name in ("processor/tokenizer.json", "shards/.00007.zarr.zip.0.partial"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * 1000)
    assert cache.size_bytes() == counted
