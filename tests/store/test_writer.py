from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.caches import make_cache, make_manifest, make_record, sha256
from vlsi_cache.errors import CacheError, CacheMismatchError
from vlsi_cache.store import create_cache, open_cache
from vlsi_cache.store.publish import publish_folder, remove_leftovers

WRITE_ALL = """
import sys
from pathlib import Path
from support.caches import make_manifest, make_record
from vlsi_cache.store import create_cache

manifest = make_manifest(num_samples=24, samples_per_shard=2)
writer = create_cache(Path(sys.argv[1]), manifest)
for shard in writer.missing_shards():
    writer.write_shard(shard, [make_record(manifest, i) for i in manifest.shard_range(shard)])
"""


def start_writer(path: Path) -> subprocess.Popen[bytes]:
    tests = Path(__file__).parents[1]
    return subprocess.Popen([sys.executable, "-c", WRITE_ALL, str(path)], cwd=tests)


def all_files(path: Path) -> dict[Path, bytes]:
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_a_run_killed_amid_its_shards_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    manifest = make_manifest(num_samples=24, samples_per_shard=2)
    make_cache(tmp_path / "unbroken", manifest)
    killed = tmp_path / "killed"
    for num_published in (1, 5, 9):
        process = start_writer(killed)
        while process.poll() is None:
            partial = list((killed / "shards").glob(".*.partial"))
            if len(list((killed / "shards").glob("0*.zarr"))) >= num_published and partial:
                process.kill()  # SIGKILL, with a temporary folder half filled
                process.wait()
        assert process.returncode == -9
    cache = open_cache(killed)
    assert not cache.is_complete
    assert all(len(shard) == 2 for shard in cache.iter_shards())
    assert start_writer(killed).wait() == 0
    assert open_cache(killed).is_complete
    assert all_files(killed) == all_files(tmp_path / "unbroken")


def test_two_writers_at_once_fill_one_sound_cache(tmp_path: Path) -> None:
    make_cache(tmp_path / "alone", make_manifest(num_samples=24, samples_per_shard=2))
    writers = [start_writer(tmp_path / "shared") for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert all_files(tmp_path / "shared") == all_files(tmp_path / "alone")


def test_a_shard_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    before = all_files(tmp_path)
    others = [make_record(cache.manifest, index, seed=9) for index in range(2)]
    create_cache(tmp_path, cache.manifest).write_shard(0, others)
    assert all_files(tmp_path) == before


def test_a_living_writers_temporary_folder_is_left_alone(tmp_path: Path) -> None:
    with publish_folder(tmp_path / "00000.zarr") as folder:
        (folder / "file").write_text("half")
        remove_leftovers(tmp_path)
        assert (folder / "file").exists()
    assert (tmp_path / "00000.zarr/file").read_text() == "half"


def test_nothing_is_published_or_left_behind_by_a_failure(tmp_path: Path) -> None:
    def fill_until_the_disk_is_full() -> None:
        with publish_folder(tmp_path / "00000.zarr") as folder:
            (folder / "file").write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fill_until_the_disk_is_full()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writers_leftovers_are_cleared_away(tmp_path: Path) -> None:
    make_cache(tmp_path, shards=[0])
    (tmp_path / ".manifest.json.0.partial").touch()
    (tmp_path / "shards/.00001.zarr.0.partial/entropy").mkdir(parents=True)
    make_cache(tmp_path)
    assert not list(tmp_path.rglob(".*"))


def test_other_settings_are_refused_with_every_difference(tmp_path: Path) -> None:
    make_cache(tmp_path)
    with pytest.raises(CacheMismatchError) as caught:
        create_cache(tmp_path, make_manifest(k=8, batch_size=2, chat_template_hash=sha256("x")))
    assert "batch_size is 8, asked for 2" in str(caught.value)
    assert "chat_template_hash is" in str(caught.value)
    assert "sampling.k is 4, asked for 8" in str(caught.value)


def test_a_moved_teacher_may_go_on(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, shards=[0])
    teacher = cache.manifest.teacher.model_copy(update={"name": "moved"})
    writer = create_cache(tmp_path, cache.manifest.model_copy(update={"teacher": teacher}))
    assert writer.missing_shards() == [1, 2]
    assert writer.manifest == cache.manifest


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(CacheError, match=r"not empty.*thesis\.tex"):
        create_cache(tmp_path, make_manifest())
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_cache_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(CacheError, match="not a folder"):
        create_cache(tmp_path / "cache", make_manifest())


def test_a_shard_takes_its_own_number_of_records(tmp_path: Path) -> None:
    manifest = make_manifest()
    with pytest.raises(ValueError, match="takes 2 records, not 1"):
        create_cache(tmp_path, manifest).write_shard(0, [make_record(manifest, 0)])


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("top_log_probs", np.nan, r"at \[0, 1, 0\]: top_log_probs.*finite.*nan"),
        ("top_log_probs", np.inf, "inf"),
        ("label_log_prob", 3.0, "label_log_prob"),
        ("entropy", np.nan, "entropy"),
        ("entropy", 1e6, "entropy"),
        ("token_ids", -1, "id below 500"),
        ("token_ids", 500, "id below 500"),
    ],
)
def test_a_value_that_no_distribution_holds_is_refused_with_sample_and_place(
    tmp_path: Path, name: str, value: float, fault: str
) -> None:
    manifest = make_manifest()
    records = [make_record(manifest, 0), make_record(manifest, 1)]
    getattr(records[1].distribution, name)[0, 1] = value
    writer = create_cache(tmp_path, manifest)
    with pytest.raises(CacheError, match=f"'sample-1'.*{fault}"):
        writer.write_shard(0, records)
    assert writer.missing_shards() == [0, 1, 2]


@pytest.mark.parametrize("changes", [{"taps": (2, -1)}, {"k": 3, "m": 5}, {"m": 3}])
def test_a_record_of_another_shape_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    records = [make_record(make_manifest(**changes), index) for index in range(2)]
    with pytest.raises(CacheError, match="does not fit the cache"):
        create_cache(tmp_path, make_manifest()).write_shard(0, records)


def test_a_key_that_is_no_sha256_is_refused(tmp_path: Path) -> None:
    manifest = make_manifest()
    records = [dataclasses.replace(make_record(manifest, index), key="abcd") for index in range(2)]
    with pytest.raises(ValueError, match="sample-0"):
        create_cache(tmp_path, manifest).write_shard(0, records)


def test_writing_from_threads_fills_every_shard(tmp_path: Path) -> None:
    manifest = make_manifest()
    writer = create_cache(tmp_path, manifest)
    threads = [
        threading.Thread(
            target=writer.write_shard,
            args=(shard, [make_record(manifest, i) for i in manifest.shard_range(shard)]),
        )
        for shard in writer.missing_shards()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert open_cache(tmp_path).is_complete
