from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from support.caches import make_cache, make_manifest, make_record
from vlsi_cache.errors import CacheError
from vlsi_cache.store import create_cache, open_cache

ARRAYS = (
    "token_ids",
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


def chunk_file(cache: Path, array: str) -> Path:
    (file,) = (p for p in (cache / "shards/00000.zarr" / array / "c").rglob("*") if p.is_file())
    return file


def assert_refused(cache: Path) -> None:
    """Both ways of reading refuse the first shard in one line that names it and the mend."""
    for read in (lambda c: [c[0], c[1]], lambda c: list(c.iter_shards())):
        with pytest.raises(CacheError) as caught:
            read(open_cache(cache))
        message = str(caught.value)
        assert "00000.zarr" in message
        assert "run dump-teacher again" in message
        assert "\n" not in message
    assert open_cache(cache)[2].sample_id == "sample-2"  # the other shard is as good as ever


@given(array=st.sampled_from(ARRAYS), data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_flipped_bit_in_any_chunk_is_an_error(
    sound: Path, array: str, data: st.DataObject
) -> None:
    file = chunk_file(sound, array)
    content = file.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    damaged = bytearray(content)
    damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        file.write_bytes(damaged)
        assert_refused(sound)
    finally:
        file.write_bytes(content)


@pytest.mark.parametrize("array", ARRAYS)
def test_a_missing_chunk_is_an_error_and_not_zeros(copy: Path, array: str) -> None:
    chunk_file(copy, array).unlink()
    assert_refused(copy)


@pytest.mark.parametrize("array", ARRAYS)
def test_a_truncated_file_is_an_error(copy: Path, array: str) -> None:
    file = chunk_file(copy, array)
    file.write_bytes(file.read_bytes()[:-5])
    assert_refused(copy)


@pytest.mark.parametrize("array", ["", *ARRAYS])
def test_missing_metadata_is_an_error(copy: Path, array: str) -> None:
    (copy / "shards/00000.zarr" / array / "zarr.json").unlink()
    assert_refused(copy)


@pytest.mark.parametrize(
    ("array", "field", "value"),
    [
        ("token_ids", "shape", [3, 3, 8]),
        ("token_ids", "data_type", "int64"),
        ("token_ids", "fill_value", 0),
        ("entropy", "fill_value", 0.0),
        ("sample_ids", "shape", [5]),
        ("", "attributes", {}),
        ("", "attributes", {"vlsi_cache": {"shard_index": 0, "num_samples": 3, "num_tokens": 9}}),
        ("", "attributes", {"vlsi_cache": {"shard_index": 1, "num_samples": 2, "num_tokens": 9}}),
        ("", "attributes", {"vlsi_cache": {"shard_index": 0, "num_samples": 2, "num_tokens": 1}}),
    ],
)
def test_metadata_that_contradicts_the_manifest_is_an_error(
    copy: Path, array: str, field: str, value: object
) -> None:
    file = copy / "shards/00000.zarr" / array / "zarr.json"
    metadata = json.loads(file.read_bytes())
    file.write_text(json.dumps(metadata | {field: value}))
    assert_refused(copy)


@pytest.mark.parametrize(
    ("array", "value"),
    [
        ("token_ids", 500),
        ("token_ids", -5),
        ("response_ids", 500),
        ("top_log_probs", np.inf),
        ("top_log_probs", 0.5),
        ("label_log_prob", np.nan),
        ("entropy", -1.0),
        ("sample_offsets", 99),
        ("sample_keys", 0),
        ("sample_ids", ord("x")),
    ],
)
def test_an_impossible_value_with_a_sound_checksum_is_an_error(
    copy: Path, array: str, value: float
) -> None:
    group = zarr.open_group(copy / "shards/00000.zarr", mode="r+")
    stored = group[array]
    assert isinstance(stored, zarr.Array)
    stored[0] = value
    assert_refused(copy)


def test_swapped_shards_are_an_error(copy: Path) -> None:
    first, second = (copy / "shards" / name for name in ("00000.zarr", "00001.zarr"))
    first.rename(copy / "aside")
    second.rename(first)
    (copy / "aside").rename(second)
    with pytest.raises(CacheError, match="holds shard 1"):
        open_cache(copy)[0]


def test_deleting_a_damaged_shard_and_dumping_again_mends_the_cache(
    sound: Path, copy: Path
) -> None:
    shutil.rmtree(copy / "shards/00000.zarr")
    manifest = open_cache(copy).manifest
    writer = create_cache(copy, manifest)
    assert writer.missing_shards() == [0]
    writer.write_shard(0, [make_record(manifest, i) for i in manifest.shard_range(0)])
    for file in (p for p in sound.rglob("*") if p.is_file()):
        assert (copy / file.relative_to(sound)).read_bytes() == file.read_bytes()
