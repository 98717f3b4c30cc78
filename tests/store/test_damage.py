from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from support.archives import chunk_of, edited_group, read_entries, shard_file, write_entries
from support.caches import make_cache, make_manifest, make_record, sha256
from vlsi_cache.errors import CacheError
from vlsi_cache.store import create_cache, open_cache

ARRAYS = (
    "drawn_ids",
    "top_ids",
    "top_log_probs",
    "entropy",
    "label_log_prob",
    "response_ids",
    "sample_offsets",
    "sample_keys",
    "sample_ids",
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "cache"
    make_cache(path, make_manifest(num_samples=4, samples_per_shard=2))
    return path


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "cache"))


def assert_refused(cache: Path) -> None:
    """Both ways of reading refuse the first shard in one line that names it and the mend."""
    for read in (lambda c: [c[0], c[1]], lambda c: list(c.iter_shards())):
        with pytest.raises(CacheError) as caught:
            read(open_cache(cache))
        message = str(caught.value)
        assert "00000.zarr.zip" in message
        assert "run dump-teacher again" in message
        assert "\n" not in message
    assert open_cache(cache)[2].sample_id == "sample-2"  # the other shard is as good as ever


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_flipped_bit_anywhere_is_an_error_or_changes_no_number(
    sound: Path, data: st.DataObject
) -> None:
    file = shard_file(sound, 0)
    content, wanted = file.read_bytes(), [pickle.dumps(record) for record in open_cache(sound)]
    at = data.draw(st.integers(0, len(content) - 1))
    damaged = bytearray(content)
    damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        file.write_bytes(damaged)
        with contextlib.suppress(CacheError):
            assert [pickle.dumps(record) for record in open_cache(sound)] == wanted
    finally:
        file.write_bytes(content)


@given(array=st.sampled_from(ARRAYS), data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_flipped_bit_in_any_chunk_is_an_error_whatever_the_zip_says(
    sound: Path, array: str, data: st.DataObject
) -> None:
    file = shard_file(sound, 0)
    entries = read_entries(file)
    chunk = chunk_of(entries, array)
    damaged = bytearray(entries[chunk])
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        write_entries(file, entries | {chunk: bytes(damaged)})
        assert_refused(sound)
    finally:
        write_entries(file, entries)


@pytest.mark.parametrize("array", ARRAYS)
def test_a_missing_chunk_is_an_error_and_not_zeros(copy: Path, array: str) -> None:
    entries = read_entries(shard_file(copy, 0))
    del entries[chunk_of(entries, array)]
    write_entries(shard_file(copy, 0), entries)
    assert_refused(copy)


@pytest.mark.parametrize("kept", [0, 1, 21, 22, 500, -100, -5, -1])
def test_a_truncated_file_is_an_error(copy: Path, kept: int) -> None:
    file = shard_file(copy, 0)
    file.write_bytes(file.read_bytes()[:kept])
    assert_refused(copy)


@pytest.mark.parametrize("array", ["", *ARRAYS])
def test_missing_metadata_is_an_error(copy: Path, array: str) -> None:
    entries = read_entries(shard_file(copy, 0))
    del entries[f"{array}/zarr.json".lstrip("/")]
    write_entries(shard_file(copy, 0), entries)
    assert_refused(copy)


@pytest.mark.parametrize(
    ("array", "field", "value"),
    [
        ("drawn_ids", "shape", [3, 3, 4]),
        ("drawn_ids", "data_type", "int64"),
        ("top_ids", "fill_value", 0),
        ("entropy", "fill_value", 0),
        ("sample_ids", "shape", [5]),
        ("", "attributes", {}),
        ("", "vlsi_cache", {"cache": sha256("another manifest")}),
        ("", "vlsi_cache", {"num_samples": 3}),
        ("", "vlsi_cache", {"shard_index": 1}),
        ("", "vlsi_cache", {"num_tokens": 1}),
        ("", "vlsi_cache", {"surprise": 1}),
    ],
)
def test_metadata_that_contradicts_the_manifest_is_an_error(
    copy: Path, array: str, field: str, value: object
) -> None:
    entries = read_entries(shard_file(copy, 0))
    name = f"{array}/zarr.json".lstrip("/")
    metadata = json.loads(entries[name])
    if field == "vlsi_cache":
        metadata["attributes"][field] |= value
    else:
        metadata[field] = value
    write_entries(shard_file(copy, 0), entries | {name: json.dumps(metadata).encode()})
    assert_refused(copy)


@pytest.mark.parametrize(
    ("array", "value"),
    [
        ("drawn_ids", 500),
        ("top_ids", 500),
        ("top_ids", -5),
        ("response_ids", 500),
        ("top_log_probs", np.inf),
        ("top_log_probs", 0.5),
        ("label_log_prob", 255),
        ("entropy", 255),
        ("entropy", 60),
        ("sample_offsets", 99),
        ("sample_keys", 0),
        ("sample_ids", ord("x")),
    ],
)
def test_an_impossible_value_with_a_sound_checksum_is_an_error(
    copy: Path, array: str, value: float
) -> None:
    with edited_group(shard_file(copy, 0)) as group:
        stored = group[array]
        assert isinstance(stored, zarr.Array)
        stored[0] = value
    assert_refused(copy)


def test_swapped_shards_are_an_error(copy: Path) -> None:
    first, second = shard_file(copy, 0), shard_file(copy, 1)
    first.rename(copy / "aside")
    second.rename(first)
    (copy / "aside").rename(second)
    with pytest.raises(CacheError, match="holds shard 1"):
        open_cache(copy)[0]


def test_a_shard_of_another_cache_is_an_error(copy: Path, tmp_path: Path) -> None:
    other = make_manifest(num_samples=4, samples_per_shard=2, verbalizers_fingerprint=sha256("?"))
    make_cache(tmp_path / "other", other)
    shutil.copy(shard_file(tmp_path / "other", 0), shard_file(copy, 0))
    with pytest.raises(CacheError, match="belongs to another cache"):
        open_cache(copy)[0]


def test_an_index_of_another_cache_is_an_error(copy: Path, tmp_path: Path) -> None:
    other = make_manifest(num_samples=4, samples_per_shard=2, verbalizers_fingerprint=sha256("?"))
    make_cache(tmp_path / "other", other)
    shutil.copy(tmp_path / "other/index.json", copy)
    with pytest.raises(CacheError, match=r"index\.json: index and manifest belong to different"):
        open_cache(copy)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("manifest.json", b'{"format_version": 1'),
        ("index.json", b'{"format_version": 1'),
        ("index.json", b'{"format_version": 1, "shards": [{}]}'),
        ("index.json", b"[" * 100_000),
    ],
)
def test_a_torn_document_is_an_error_that_names_it(copy: Path, name: str, content: bytes) -> None:
    (copy / name).write_bytes(content)
    with pytest.raises(CacheError, match=name.replace(".", r"\.")):
        open_cache(copy)


def test_deleting_a_damaged_shard_and_dumping_again_mends_the_cache(
    sound: Path, copy: Path
) -> None:
    manifest = open_cache(copy).manifest
    shard_file(copy, 0).unlink()
    (copy / "shards/00000.json").unlink()
    writer = create_cache(copy, manifest)
    assert writer.missing_shards() == [0]
    writer.write_shard(0, [make_record(manifest, i) for i in manifest.shard_range(0)])
    for file in (p for p in sound.rglob("*") if p.is_file()):
        assert (copy / file.relative_to(sound)).read_bytes() == file.read_bytes()
