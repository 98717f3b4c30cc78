"""Merging caches: one cache of several, without a byte of a shard moved."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from support.caches import FAILED, make_manifest, make_record, sha256, write_part
from vlsi_cache.cli.main import cli
from vlsi_cache.errors import CacheError, CacheMismatchError
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.report import summarize_cache
from vlsi_cache.store import (
    create_cache,
    merge_caches,
    open_cache,
    verify_cache,
)

SIZES = ((5, 2), (4, 3), (2, 8))
"""Samples, and samples per shard, of the parts."""
NUM_SAMPLES = sum(size for size, _ in SIZES)
NUM_MOMENTS = 7
MERGER = """
import sys
from vlsi_cache.store import merge_caches
print("ready", flush=True)
sys.stdin.readline()
merge_caches(sys.argv[1], sys.argv[2:])
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, first, made = tmp_path_factory.mktemp("parts"), 0, []
    for number, (size, per_shard) in enumerate(SIZES):
        numbers = range(first, first + size)
        made.append(write_part(folder / f"part{number}", numbers, per_shard))
        first += size
    return made


@pytest.fixture(scope="module")
def merged(parts: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("merged") / "cache"
    merge_caches(path, parts)
    return path


def files_of(path: Path) -> dict[str, bytes]:
    found = (file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in found}


def test_a_merged_cache_holds_the_samples_of_all_in_order(parts: list[Path], merged: Path) -> None:
    cache = open_cache(merged)
    wanted = [record for part in parts for record in open_cache(part)]
    assert pickle.dumps(list(cache)) == pickle.dumps(wanted)
    by_shard = [record for shard in cache.iter_shards() for record in shard]
    assert [record.sample_id for record in by_shard] == [record.sample_id for record in wanted]
    assert (len(cache), cache.is_complete) == (NUM_SAMPLES, True)
    assert cache.failures() == {FAILED: "image is broken"}
    assert cache["sample-9"].key == wanted[9].key
    assert cache.num_tokens == sum(len(record.response_ids) for record in wanted)
    keys = b"".join(bytes.fromhex(record.key) for record in wanted)
    assert cache.manifest.dataset.fingerprint == hashlib.sha256(keys).hexdigest()
    assert pickle.loads(pickle.dumps(cache))[9].key == wanted[9].key
    with pytest.raises(IndexError):
        cache[NUM_SAMPLES]


def test_shards_are_the_parts_own_files(parts: list[Path], merged: Path) -> None:
    own = [file for part in parts for file in sorted((part / "shards").glob("*.zip"))]
    linked = sorted((merged / "shards").glob("*.zip"))
    assert [file.stat().st_ino for file in linked] == [file.stat().st_ino for file in own]
    for number, part in enumerate(parts):
        copy = merged / "parts" / f"{number:05d}.json"
        assert copy.read_bytes() == (part / "manifest.json").read_bytes()


def test_a_merged_cache_is_inspected_and_verified(merged: Path) -> None:
    found = verify_cache(merged)
    assert (found.sound, found.complete, found.num_shards_sealed) == (True, True, 6)
    summary = summarize_cache(open_cache(merged))
    assert (summary.num_samples, summary.complete, summary.num_parts) == (NUM_SAMPLES, True, 3)
    assert summary.dataset == "part0 + part1 + part2"
    sizes = {name: len(content) for name, content in files_of(merged).items()}
    assert summary.bytes_on_disk == sum(sizes.values())
    assert summary.bytes_total == sum(sizes[name] for name in sizes if "processor" not in name)
    shown = CliRunner().invoke(cli, ["inspect", str(merged)]).stdout
    assert "6, complete, merged of 3 caches" in shown


def test_merging_step_by_step_is_merging_at_once(
    parts: list[Path], merged: Path, tmp_path: Path
) -> None:
    merge_caches(tmp_path / "two", parts[:2])
    merge_caches(tmp_path / "three", [tmp_path / "two", parts[2]])
    content, wanted = files_of(tmp_path / "three"), files_of(merged)
    assert content == wanted


def test_a_merge_that_is_killed_goes_on_to_the_same_bytes(
    parts: list[Path], merged: Path, tmp_path: Path
) -> None:
    wanted = files_of(merged)
    generator, killed, seconds = np.random.default_rng(0), 0, math.inf
    for moment in itertools.count():
        path = tmp_path / str(moment)
        process = subprocess.Popen(
            [sys.executable, "-c", MERGER, path, *parts],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        began = time.monotonic()
        process.stdin.write("\n")
        process.stdin.flush()
        if moment:  # the first shows how long it takes
            time.sleep(float(generator.uniform(0, seconds)))
            process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == 0:  # a later kill must not miss what a busy machine drew out
            seconds = min(seconds, time.monotonic() - began)
        killed += process.returncode == -signal.SIGKILL
        if (path / "manifest.json").exists():
            assert verify_cache(path).sound
        merge_caches(path, parts)
        assert files_of(path) == wanted
        if moment + 1 >= NUM_MOMENTS and killed > NUM_MOMENTS // 2:
            break


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"taps": [2, -1]}, "taps is"),
        ({"sampling": {"k": 4, "m": 4, "seed": 1}}, r"sampling\.seed is 1, the first cache's 0"),
        ({"dtype": "bfloat16"}, "dtype is .*precision"),
        ({"chat_template_hash": sha256("x")}, "chat_template_hash is .*other conversations"),
        ({"verbalizers_fingerprint": sha256("x")}, "verbalizers_fingerprint is .*other weights"),
        (
            {"tokenizer": {"name": "t", "hash": sha256("x"), "vocab_size": 500}},
            r"tokenizer\.hash is .*another vocabulary",
        ),
        (
            {"teacher": {"name": "t", "model_type": "x", "weights_fingerprint": sha256("weights")}},
            r"teacher\.model_type is",
        ),
    ],
)
def test_caches_of_another_kind_are_not_merged(
    parts: list[Path], tmp_path: Path, changes: dict[str, Any], fault: str
) -> None:
    other = _empty(tmp_path / "empty", open_cache(parts[0]).manifest, changes)
    with pytest.raises(CacheMismatchError, match=rf"empty: caches cannot be merged: {fault}"):
        merge_caches(tmp_path / "out", [parts[0], other])
    assert not (tmp_path / "out").exists()


def _empty(path: Path, manifest: CacheManifest, changes: dict[str, Any]) -> Path:
    """Make a complete cache without samples."""
    dataset = {"source": "none", "fingerprint": hashlib.sha256().hexdigest(), "num_samples": 0}
    fields = {**manifest.model_dump(), "dataset": dataset, **changes}
    create_cache(path, CacheManifest.model_validate(fields))
    return path


def test_a_conversation_may_come_twice_under_two_ids_as_in_one_dump(
    parts: list[Path], tmp_path: Path
) -> None:
    manifest = make_manifest(num_samples=2, samples_per_shard=2)
    record = next(iter(open_cache(parts[0])))
    other = make_record(manifest, 40)
    records = [dataclasses.replace(record, sample_id="again"), other]
    keys = b"".join(bytes.fromhex(one.key) for one in records)
    dataset = {**manifest.model_dump()["dataset"], "fingerprint": hashlib.sha256(keys).hexdigest()}
    fields = {**open_cache(parts[0]).manifest.model_dump(), "dataset": dataset}
    writer = create_cache(tmp_path / "other", CacheManifest.model_validate(fields))
    writer.write_shard(0, records)
    merge_caches(tmp_path / "out", [parts[0], tmp_path / "other"])
    merged = open_cache(tmp_path / "out")
    assert merged["again"].key == record.key
    assert len(merged) == len(open_cache(parts[0])) + 2


def test_samples_that_two_caches_hold_are_refused(parts: list[Path], tmp_path: Path) -> None:
    other = write_part(tmp_path / "other", [30, 3, 4])
    with pytest.raises(
        CacheMismatchError, match="other: caches share 2 conversations; found"
    ) as caught:
        merge_caches(tmp_path / "out", [parts[0], other])
    same = "the same content in sample '{}' of {} and in sample '{}' of {}"
    assert any(
        same.format(name, parts[0], name, other) in str(caught.value)
        for name in (record.sample_id for record in open_cache(other))
    )
    with pytest.raises(CacheError, match="the cache to make is one of those to merge"):
        merge_caches(parts[0], parts)
    with pytest.raises(CacheMismatchError, match="caches share 5 conversations"):
        merge_caches(tmp_path / "out", [parts[0], parts[1], parts[0]])


def test_a_conversation_that_one_cache_holds_twice_is_merged(
    parts: list[Path], tmp_path: Path
) -> None:
    twice = write_part(tmp_path / "twice", [30, 31, 30])
    merge_caches(tmp_path / "out", [twice, parts[0]])
    assert len(open_cache(tmp_path / "out")) == 8


def test_an_incomplete_cache_is_not_merged(parts: list[Path], tmp_path: Path) -> None:
    begun = shutil.copytree(parts[0], tmp_path / "begun")
    (begun / "index.json").unlink()
    with pytest.raises(CacheError, match=r"begun: cache is incomplete: .*Run dump-teacher again"):
        merge_caches(tmp_path / "out", [parts[1], begun])


def test_a_manifest_of_other_samples_is_not_merged(parts: list[Path], tmp_path: Path) -> None:
    dataset = {"source": "x", "fingerprint": sha256("other data"), "num_samples": 2}
    other = write_part(tmp_path / "other", [20, 21], dataset=dataset)
    with pytest.raises(CacheError, match="other: cache holds other samples than its manifest"):
        merge_caches(tmp_path / "out", [parts[0], other])


def test_a_place_that_is_taken_is_refused(parts: list[Path], tmp_path: Path) -> None:
    taken = shutil.copytree(parts[2], tmp_path / "taken")
    with pytest.raises(
        CacheMismatchError, match=r"(?s)begun with other settings:\n.*\n  parts is absent"
    ):
        merge_caches(taken, parts[:2])
    merge_caches(tmp_path / "out", parts[:2])
    with pytest.raises(CacheMismatchError, match=r"parts is .*one of the two is a merged cache"):
        create_cache(tmp_path / "out", open_cache(parts[0]).manifest)
    with pytest.raises(CacheError, match="nothing to merge; expected at least 2 caches; found 1"):
        merge_caches(tmp_path / "one", parts[:1])


def test_more_parts_than_a_cache_holds_are_refused(parts: list[Path], tmp_path: Path) -> None:
    empty = [_empty(tmp_path / "empty", open_cache(parts[0]).manifest, {})]
    with pytest.raises(CacheError, match=r"too many parts; expected at most 1,000; found 1,001"):
        merge_caches(tmp_path / "out", [parts[0], *empty * 1000])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("sizes", [((0, 1),), ((5, 2), (0, 3), (4, 3)), ((0, 2), (1, 1), (0, 1))])
def test_every_sample_lies_in_the_shard_that_says_so(sizes: tuple[tuple[int, int], ...]) -> None:
    manifest = _of_parts(sizes)
    shards = [manifest.shard_origin(shard) for shard in range(manifest.num_shards)]
    assert [sample for shard in shards for sample in shard.samples] == [
        *range(manifest.dataset.num_samples)
    ]
    wanted = [
        (number, shard)
        for number, (size, per_shard) in enumerate(sizes)
        for shard in range(-(-size // per_shard))
    ]
    assert [(shard.part_index, shard.shard_index) for shard in shards] == wanted
    for index, shard in enumerate(shards):
        assert {manifest.shard_of(sample) for sample in shard.samples} == {index}
    for beyond in (-1, manifest.num_shards):
        with pytest.raises(IndexError):
            manifest.shard_range(beyond)
    again = pickle.loads(pickle.dumps(manifest))
    assert (again, again.model_dump_json()) == (manifest, manifest.model_dump_json())
    assert manifest == _of_parts(sizes)


def test_finding_a_sample_takes_no_walk_over_the_parts() -> None:
    manifest = _of_parts([(3, 2)] * 1000)
    began = time.monotonic()
    for sample in range(3000):
        manifest.shard_range(manifest.shard_of(sample))
    assert time.monotonic() - began < 1  # 4 s, if each part were walked over


def _of_parts(sizes: Sequence[tuple[int, int]]) -> CacheManifest:
    parts = [
        {
            "manifest_sha256": sha256(str(number)),
            "dataset": {"source": "x", "fingerprint": sha256("x"), "num_samples": size},
            "samples_per_shard": per_shard,
            "batch_size": 8,
        }
        for number, (size, per_shard) in enumerate(sizes)
    ]
    return make_manifest(
        num_samples=sum(size for size, _ in sizes),
        samples_per_shard=max(per_shard for _, per_shard in sizes),
        parts=parts,
    )


@pytest.mark.parametrize("number", range(18))
def test_any_flipped_bit_of_a_merged_cache_is_found_with_its_file(
    merged: Path, tmp_path: Path, number: int
) -> None:
    copy = shutil.copytree(merged, tmp_path / "copy")  # never through the links
    names = sorted(files_of(copy))
    name = names[number % len(names)]
    content = bytearray((copy / name).read_bytes())
    position = int(np.random.default_rng(number).integers(len(content)))
    content[position] ^= 1 << number % 8
    (copy / name).write_bytes(content)
    found = verify_cache(copy)
    assert name in {file for damage in found.damages for file in damage.files}, found


@pytest.mark.parametrize("name", ["parts/00001.json", "shards/00002.zarr.zip", "shards/00005.json"])
def test_a_file_that_is_lost_is_found_and_merging_again_brings_it_back(
    parts: list[Path], merged: Path, tmp_path: Path, name: str
) -> None:
    copy, wanted = shutil.copytree(merged, tmp_path / "copy"), files_of(merged)
    (copy / name).unlink()
    (damage,) = verify_cache(copy).damages
    assert (damage.files, "merge again with the same caches" in damage.mend) == ((name,), True)
    (copy / "index.json").unlink()
    merge_caches(copy, parts)
    assert files_of(copy) == wanted


def test_a_part_in_anothers_place_is_refused_when_it_is_read(merged: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(merged, tmp_path / "copy")
    first, other = (copy / "shards" / f"0000{number}.zarr.zip" for number in (0, 3))
    content = first.read_bytes()
    first.write_bytes(other.read_bytes())
    other.write_bytes(content)
    cache = open_cache(copy)
    for sample in (0, 5):
        with pytest.raises(CacheError, match="belongs to another cache"):
            cache[sample]
    assert cache[2].sample_id == "sample-2"


def test_a_damaged_shard_is_not_taken_over(parts: list[Path], tmp_path: Path) -> None:
    copy = shutil.copytree(parts[0], tmp_path / "copy")
    with (copy / "shards" / "00001.zarr.zip").open("ab") as file:
        file.write(b"x")
    with pytest.raises(CacheError, match=r"00001\.zarr\.zip"):
        merge_caches(tmp_path / "out", [copy, parts[1]])


def as_links(source: Path, folder: Path, blobs: Path, *, relative: bool) -> Path:
    """The cache as the hub's client lays one out: links to files that lie elsewhere."""
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        key = file.relative_to(source)
        link, blob = folder / key, blobs / key.as_posix().replace("/", "_")
        for parent in (link.parent, blobs):
            parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        link.symlink_to(os.path.relpath(blob, link.parent) if relative else blob)
    return folder


@pytest.mark.parametrize("relative", [True, False])
def test_what_a_link_leads_to_is_taken_over_and_outlives_it(
    parts: list[Path], merged: Path, tmp_path: Path, relative: bool
) -> None:
    blobs, links = tmp_path / "hub/blobs", tmp_path / "hub/snapshots/1"
    source = as_links(parts[0], links, blobs, relative=relative)
    merge_caches(tmp_path / "out", [source, *parts[1:]])
    assert not [file for file in (tmp_path / "out").rglob("*") if file.is_symlink()]
    shutil.rmtree(tmp_path / "hub")
    assert files_of(tmp_path / "out") == files_of(merged)
    assert verify_cache(tmp_path / "out").sound


def test_a_merge_ends_with_a_look_at_every_size(parts: list[Path], tmp_path: Path) -> None:
    merge_caches(tmp_path / "out", parts)
    shard = tmp_path / "out/shards/00002.zarr.zip"
    shard.unlink()
    shard.symlink_to("nowhere")
    with pytest.raises(CacheError, match=r"00002\.zarr\.zip: is a link that leads nowhere"):
        merge_caches(tmp_path / "out", parts)
    shard.unlink()
    shard.write_bytes(b"short")
    with pytest.raises(CacheError, match=r"00002\.zarr\.zip: shard is damaged"):
        merge_caches(tmp_path / "out", parts)


def test_a_changed_file_of_the_processor_is_not_taken_over(
    parts: list[Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(parts[0], tmp_path / "copy")
    (file,) = (copy / "processor").iterdir()
    file.write_bytes(file.read_bytes()[::-1])
    with pytest.raises(CacheError, match=rf"{file.name}: file differs from its seal"):
        merge_caches(tmp_path / "out", [copy, parts[1]])


def test_the_command_merges(parts: list[Path], merged: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(cli, ["merge", str(out), *map(str, parts)])
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        f"cache: {out}",
        f"look inside with: vlsi-cache inspect {out}",
        f"next: vlsi-cache train-student --student MODEL --data DATA-OF-ALL --cache {out}",
    ]
    assert files_of(out) == files_of(merged)
    refused = CliRunner().invoke(cli, ["merge", str(out), str(tmp_path / "none"), str(parts[0])])
    assert (refused.exit_code, "no cache here" in refused.stderr) == (1, True)
