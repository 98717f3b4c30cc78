"""The codec of records with likely tokens and draws together."""

from __future__ import annotations

import zlib
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import zarr
from hypothesis import given
from numpy.typing import NDArray

from support.caches import make_cache, make_manifest, make_record
from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.errors import CacheError
from vlsi_cache.levels import FRACTIONS, TAILS
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.store import create_cache, open_cache
from vlsi_cache.store.shards import packing
from vlsi_cache.store.shards.coding.codecs import TogetherCodec
from vlsi_cache.store.shards.coding.together import decode_together, encode_together

Kept = NDArray[np.int32]


@st.composite
def records(draw: st.DrawFn) -> tuple[Kept, int]:
    """Records as a reader gives them: draws ascend, and those of the likely ones come last."""
    tokens, taps = draw(st.integers(0, 5)), draw(st.integers(1, 10))
    k, m = draw(st.sampled_from([1, 2, 4, 6, 17])), draw(st.integers(1, 15))
    ids = max(draw(st.sampled_from([k, 30, 500, 70_000])), k)
    dice = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = tokens * taps
    top = np.array([dice.choice(ids, k, replace=False) for _ in range(rows)]).reshape(rows, k)
    drawn = dice.integers(0, ids, (rows, m))
    drawn = np.where((drawn[:, :, None] == top[:, None]).any(-1), 2**31 - 1, drawn)
    drawn.sort(1)
    drawn = np.where(drawn == 2**31 - 1, top[:, :1], drawn)
    tails = dice.integers(0, len(TAILS), (rows, 1))
    levels = np.concatenate([tails, dice.integers(0, len(FRACTIONS), (rows, k - 1))], 1)
    codes = dice.integers(0, 255, (rows, 2))
    kept = np.concatenate([top, levels, drawn, codes], 1).astype(np.int32)
    kept = kept.reshape(tokens, taps, 2 * k + m + 2)
    kept[dice.random(tokens) < 0.2] = -1
    return kept, k


@given(records())
def test_records_come_back(given: tuple[Kept, int]) -> None:
    kept, k = given
    np.testing.assert_array_equal(decode_together(encode_together(kept, k), kept.shape, k), kept)


@given(records(), st.data())
def test_damaged_bytes_are_refused_or_a_record_of_the_same_shape(
    given: tuple[Kept, int], data: st.DataObject
) -> None:
    kept, k = given
    content = bytearray(encode_together(kept, k))
    for _ in range(data.draw(st.integers(1, 3))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(content[: data.draw(st.integers(0, len(content)))])
    for damaged in (bytes(content), cut, bytes(content) + b"\0"):
        try:
            found = decode_together(damaged, kept.shape, k)
        except ValueError:
            continue
        # What is read is a record: it can be written, and reads the same.
        again = decode_together(encode_together(found, k), kept.shape, k)
        np.testing.assert_array_equal(again, found)


@given(st.binary(max_size=200), st.tuples(*[st.integers(1, 4)] * 3), st.integers(1, 4))
def test_any_bytes_are_records_or_refused(
    content: bytes, shape: tuple[int, int, int], k: int
) -> None:
    tokens, taps, m = shape
    try:
        found = decode_together(content, (tokens, taps, 2 * k + m + 2), k)
    except ValueError:
        return
    assert found.shape == (tokens, taps, 2 * k + m + 2)


def test_a_stream_that_would_burst_is_refused() -> None:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    burst = deflate.compress(bytes(10**7)) + deflate.flush()
    with pytest.raises(ValueError, match="too short or too long"):
        decode_together(len(burst).to_bytes(4, "little") + burst, (4, 2, 7), 1)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([1, 1, 5, 5, 3, 0, 0], "not distinct"),
        ([1, 2, 99, 5, 3, 0, 0], "does not exist"),
        ([1, 2, 5, 66, 3, 0, 0], "does not exist"),
        ([1, 2, 5, 5, 3, 255, 0], "does not exist"),
        ([1, 2, 5, 5, -1, 0, 0], "below 0"),
        ([1, 2, 5, 5, -2, 0, 0], "below 0"),
    ],
)
def test_impossible_records_are_refused(row: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        encode_together(np.array([[row]], np.int32), 2)


def test_shapes_beyond_the_codec_are_refused() -> None:
    for shape, k in (((1, 1, 262), 2), ((1, 1, 600), 256), ((1, 9000, 14), 4), ((1, 1, 10), 4)):
        with pytest.raises(ValueError, match="beyond the codec"):
            decode_together(b"", shape, k)


def test_the_codec_is_configured_by_k_and_its_revision() -> None:
    assert TogetherCodec.from_dict(TogetherCodec(4).to_dict()) == TogetherCodec(4)
    said = "k and its revision alone|revision none, expected 2"
    for wrong in ({}, {"k": "4", "revision": 2}, {"k": 4, "m": 2, "revision": 2}, {"revision": 2}):
        with pytest.raises(ValueError, match=said):
            TogetherCodec.from_dict({"name": "vlsi-cache.together", "configuration": wrong})


def test_any_zarr_reader_opens_records(tmp_path: Path) -> None:
    row = [7, 3, 40, 20, 9, 9, 7, 12, 8]
    kept = np.tile(np.array(row, np.int32), (50, 3, 1))
    made = zarr.create_array(
        tmp_path / "kept", shape=kept.shape, dtype="int32", chunks=(16, 3, 9), fill_value=-1,
        serializer=TogetherCodec(2), compressors=None, filters=None,
    )  # fmt: skip
    made[...] = kept
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "kept", mode="r")[7:23], kept[7:23])


def together_manifest(**changes: object) -> CacheManifest:
    return make_manifest(m=12, drawn_from="whole", **changes)  # type: ignore[arg-type]


def test_a_cache_holds_what_was_written(tmp_path: Path) -> None:
    manifest = together_manifest()
    cache = make_cache(tmp_path / "cache", manifest)
    assert cache.manifest.format_version == 2
    for index, read in enumerate(cache):
        made = make_record(manifest, index).distribution
        found = read.distribution
        assert found.drawn_from == "whole"
        np.testing.assert_array_equal(found.token_ids, made.token_ids)
        np.testing.assert_array_equal(found.top_log_probs, made.top_log_probs)
        np.testing.assert_array_equal(found.weights(), made.weights())
        np.testing.assert_allclose(found.entropy, made.entropy, atol=1 / 16)


@pytest.mark.parametrize("earlier", [{"k": 4}, {"k": 4, "revision": 1}, {"k": 4, "revision": 3}])
def test_a_cache_of_another_revision_of_the_codec_is_refused_by_name(
    earlier: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        written = {"name": "vlsi-cache.together", "configuration": earlier}
        patch.setattr(TogetherCodec, "to_dict", lambda _: written)
        patch.setattr(packing, "validate_array", lambda *_: None)
        make_cache(tmp_path / "cache", together_manifest())
    said = r"00000\.zarr\.zip: .*a revision that.*expected revision 2; found (none|1|3)\. Dump"
    cache = open_cache(tmp_path / "cache")
    with pytest.raises(CacheError, match=said):
        next(iter(cache))


def test_records_of_the_other_kind_are_refused(tmp_path: Path) -> None:
    writer = create_cache(tmp_path / "cache", together_manifest(num_samples=1))
    other = make_record(make_manifest(m=12), 0)
    with pytest.raises(CacheError, match=r"drawn from the whole; found .* drawn from the rest"):
        writer.write_shard(0, [other])


def test_likely_tokens_that_stand_twice_are_refused(tmp_path: Path) -> None:
    manifest = together_manifest(num_samples=1)
    record = make_record(manifest, 0)
    record.distribution.token_ids[0, 0, 1] = record.distribution.token_ids[0, 0, 0]
    with pytest.raises(CacheError, match="token_ids holds an impossible value"):
        create_cache(tmp_path / "cache", manifest).write_shard(0, [record])


@pytest.mark.parametrize(
    "sampling",
    [
        {"k": 0, "m": 4, "seed": 0, "drawn_from": "whole"},
        {"k": 4, "m": 0, "seed": 0, "drawn_from": "whole"},
        {"k": 256, "m": 4, "seed": 0, "drawn_from": "whole"},
        {"k": 4, "m": 4, "seed": 0},
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(sampling: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"drawn_from whole needs|format_version is not 1"):
        make_manifest(sampling=sampling, format_version=2)


def test_distributions_of_two_kinds_do_not_join() -> None:
    kinds = [make_manifest(m=12), together_manifest()]
    parts = [make_record(manifest, 0).distribution for manifest in kinds]
    with pytest.raises(ValueError, match="what was drawn from"):
        SparseDistribution.concatenate(parts)
