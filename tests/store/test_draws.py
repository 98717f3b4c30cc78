from __future__ import annotations

import re
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from vlsi_cache.store.shards.coding.codecs import DrawsCodec
from vlsi_cache.store.shards.coding.draws import decode_draws, encode_draws
from vlsi_cache.store.shards.coding.pools import order_of

DOCUMENT = (Path(__file__).parents[2] / "FORMAT.md").read_text(encoding="utf-8")


def documented_decoder() -> Any:
    (code,) = re.findall(r"```python\n(def decode_draws.*?)```", DOCUMENT, re.DOTALL)
    names: dict[str, Any] = {"zlib": zlib}
    exec(code, names)
    return names["decode_draws"]


@st.composite
def drawn(draw: st.DrawFn) -> NDArray[np.int32]:
    shape = draw(st.tuples(st.integers(0, 6), st.integers(1, 18), st.integers(1, 14)))
    largest = draw(st.sampled_from([0, 3, 40, 500, 70_000, 2**31 - 1]))
    ids = draw(hnp.arrays(np.int32, shape, elements=st.integers(0, largest)))
    holes = draw(hnp.arrays(np.bool_, shape[0]))
    ids[holes] = -1
    return ids


@given(drawn())
def test_draws_come_back_sorted(draws: NDArray[np.int32]) -> None:
    content = encode_draws(draws)
    np.testing.assert_array_equal(decode_draws(content, draws.shape), np.sort(draws, -1))


@given(drawn())
def test_the_documented_decoder_reads_the_same(draws: NDArray[np.int32]) -> None:
    content = encode_draws(draws)
    assert documented_decoder()(content, *draws.shape) == np.sort(draws, -1).tolist()


@given(drawn(), st.data())
def test_damaged_bytes_never_give_draws_of_another_shape(
    draws: NDArray[np.int32], data: st.DataObject
) -> None:
    content = bytearray(encode_draws(draws))
    for _ in range(data.draw(st.integers(1, 3))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(content[: data.draw(st.integers(0, len(content)))])
    for damaged in (bytes(content), cut, bytes(content) + b"\0"):
        try:
            found = decode_draws(damaged, draws.shape)
        except ValueError:
            continue
        assert found.shape == draws.shape
        assert found.min(initial=0) >= -1


@given(st.binary(max_size=200), st.tuples(*[st.integers(1, 5)] * 3))
def test_any_bytes_are_draws_or_refused(content: bytes, shape: tuple[int, int, int]) -> None:
    try:
        found = decode_draws(content, shape)
    except ValueError:
        return
    assert found.shape == shape


def test_a_stream_that_would_burst_is_refused() -> None:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    burst = deflate.compress(bytes(10**7)) + deflate.flush()
    with pytest.raises(ValueError, match="too short or too long"):
        decode_draws(len(burst).to_bytes(4, "little") + burst, (4, 2, 3))


BURST = """
import resource, sys, zlib
import numpy as np
from vlsi_cache.store.shards.coding.draws import decode_draws

def stream(values):
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    coded = deflate.compress(values) + deflate.flush()
    return len(coded).to_bytes(4, "little") + coded

# 40 tokens of 10,000 ids, drawn by all of 10,000 taps: 8 GB of entries, if they were laid out
low, high = bytes([10_000 % 256]) * 40, bytes([10_000 // 256]) * 40
zeros = stream(bytes(40 * 1250))
content = stream(low) + stream(high) + (zeros + zeros) * 8
content += stream(bytes([255]) * 400_000) * 1250
soft = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + 2**29
resource.setrlimit(resource.RLIMIT_AS, (soft, soft))
try:
    decode_draws(content, (40, 10_000, 6))
except ValueError as error:
    assert "more entries than draws" in str(error), error
else:
    raise AssertionError
"""


def test_taps_without_number_cost_no_memory() -> None:
    subprocess.run([sys.executable, "-c", BURST], check=True)


@pytest.mark.parametrize(
    ("draws", "said"),
    [
        ([[[1, 2], [3, -1]]], "below 0"),
        ([[[1, 2], [3, -2]]], "below 0"),
        (np.zeros((1, 300, 250), int).tolist(), "beyond the codec"),
        (np.zeros((1, 1, 256), int).tolist(), "beyond the codec"),
    ],
)
def test_draws_beyond_the_codec_are_refused(draws: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        encode_draws(np.array(draws, np.int32))


def test_any_zarr_reader_opens_draws(tmp_path: Path) -> None:
    draws = np.sort(np.random.default_rng(0).integers(0, 99, (50, 3, 4), np.int32))
    made = zarr.create_array(
        tmp_path / "draws", shape=draws.shape, dtype="int32", chunks=(16, 3, 4), fill_value=-1,
        serializer=DrawsCodec(), compressors=None, filters=None,
    )  # fmt: skip
    made[...] = draws
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "draws", mode="r")[7:23], draws[7:23])


def test_the_codec_takes_no_configuration_and_other_arrays_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no configuration"):
        DrawsCodec.from_dict({"name": "vlsi-cache.draws", "configuration": {"a": 1}})
    made = zarr.create_array(
        tmp_path / "flat", shape=(4,), dtype="int32", chunks=(4,), fill_value=-1,
        serializer=DrawsCodec(), compressors=None, filters=None,
    )  # fmt: skip
    with pytest.raises(ValueError, match="three axes"):
        made[...] = np.arange(4, dtype=np.int32)


@given(st.lists(st.integers(0, 2**22), max_size=40), st.sampled_from([0, 10, 20]))
def test_whole_numbers_are_ordered_as_numpy_orders_them(numbers: list[int], shift: int) -> None:
    values = np.array(numbers, np.int64) >> shift
    np.testing.assert_array_equal(order_of(values), np.argsort(values, kind="stable"))
