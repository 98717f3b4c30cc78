"""Files made to harm the reader are refused before anything is allocated or written."""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google_crc32c import value as crc32c_value
from numcodecs.zstd import Zstd

from support.archives import chunk_of, read_entries, shard_file, write_entries
from support.caches import make_cache, make_manifest
from vlsi_cache.errors import CacheError
from vlsi_cache.store import create_cache, open_cache, verify_cache
from vlsi_cache.store.shards.bounds import validate_frame
from vlsi_cache.store.shards.layout import CHUNK_BYTES, token_arrays

HUGE = 10**18


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "cache"
    make_cache(path)
    return path


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "cache"))


def assert_refused(cache: Path, fault: str = "shard is damaged") -> None:
    with pytest.raises(CacheError, match=fault) as caught:
        open_cache(cache)[0]
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 3000


# --- the manifest


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("dataset.num_samples", HUGE),
        ("dataset.num_samples", -1),
        ("dataset.num_samples", "5"),
        ("dataset.num_samples", 1e3),
        ("dataset.num_samples", 10**12),  # a million million shards of two
        ("samples_per_shard", HUGE),
        ("samples_per_shard", 0),
        ("samples_per_shard", None),
        ("tokenizer.vocab_size", HUGE),
        ("sampling.k", HUGE),
        ("sampling.m", -1),
        ("taps", list(range(20_000))),
        ("taps", [HUGE, -1]),
        ("taps", [-1, 2]),
        ("taps", "all"),
        ("dataset", []),
        ("dataset", {"source": {"source": {}}}),
        ("teacher.weights_fingerprint", "../../etc/passwd"),
        ("surprise", {}),
        ("format_version", 2),
        ("format_version", "1"),
        ("format_version", HUGE),
    ],
)
def test_a_manifest_of_absurd_or_wrong_values_is_refused(
    tmp_path: Path, path: str, value: Any
) -> None:
    tree = make_manifest().model_dump(mode="json")
    *folders, last = path.split(".")
    part = tree
    for folder in folders:
        part = part[folder]
    part[last] = value
    (tmp_path / "manifest.json").write_text(json.dumps(tree))
    assert_refused(tmp_path, r"manifest\.json")
    assert not verify_cache(tmp_path).sound
    with pytest.raises(CacheError, match=r"manifest\.json"):
        create_cache(tmp_path, make_manifest())


@pytest.mark.parametrize("name", ["manifest.json", "index.json"])
@pytest.mark.parametrize(
    "content",
    [
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"format_version": 1, "taps": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"format_version": 1' + b" " * 2**22 + b"}",
        b'{"format_version": ' + b"9" * 100_000 + b"}",
        b"\x00" * 1000,
        b"",
    ],
)
def test_json_that_is_deep_or_endless_is_refused(copy: Path, name: str, content: bytes) -> None:
    (copy / name).write_bytes(content)
    assert_refused(copy, name.replace(".", r"\."))
    assert name in {file for damage in verify_cache(copy).damages for file in damage.files}


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree["shards"].append(tree["shards"][0]),
        lambda tree: tree["shards"].pop(),
        lambda tree: tree["shards"][0].update(num_tokens=HUGE * 100),
        lambda tree: tree["shards"][0].update(num_bytes=-1),
        lambda tree: tree["shards"][0].update(num_bytes=True),
        lambda tree: tree["shards"][0].update(sha256="../" * 21 + "x"),
        lambda tree: tree["shards"][0].update(path="/etc/passwd"),
        lambda tree: tree.update(processor={"files": {"../../escape": tree["shards"][0]}}),
        lambda tree: tree.update(
            processor={"files": {"/etc/passwd": {"sha256": "0" * 64, "num_bytes": 1}}}
        ),
        lambda tree: tree.update(
            processor={"files": {"a/../../b": {"sha256": "0" * 64, "num_bytes": 1}}}
        ),
    ],
)
def test_an_index_of_absurd_values_or_paths_is_refused(
    copy: Path, change: Callable[[Any], Any]
) -> None:
    tree = json.loads((copy / "index.json").read_bytes())
    change(tree)
    (copy / "index.json").write_text(json.dumps(tree, indent=1) + "\n")
    assert_refused(copy, r"index\.json: index is damaged")
    assert [damage.files for damage in verify_cache(copy).damages] == [("index.json",)]


@pytest.mark.parametrize("name", ["../escape", "/etc/hostname", "a/../../b", "", ".", "a//b"])
def test_a_processors_seal_never_leads_outside_its_folder(copy: Path, name: str) -> None:
    (copy / "index.json").unlink()
    seal = {"files": {name: {"sha256": "0" * 64, "num_bytes": 1}}}
    (copy / "processor.json").write_text(json.dumps(seal, indent=1) + "\n")
    (damage,) = verify_cache(copy).damages
    assert damage.files == ("processor.json",)


def test_a_seal_of_absurd_size_is_refused(copy: Path) -> None:
    (copy / "index.json").unlink()
    (copy / "shards/00000.json").write_bytes(b" " * 10**6)
    with pytest.raises(CacheError, match=r"00000\.json: file is absurdly large"):
        create_cache(copy, make_manifest())


# --- the zip


def zipped(*entries: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in entries:
            file.writestr(zipfile.ZipInfo(name), content, compression)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "top_ids/../../x", "a\\..\\x", "zarr.js"])
def test_a_zip_entry_out_of_place_is_refused(copy: Path, name: str) -> None:
    entries = read_entries(shard_file(copy, 0))
    shard_file(copy, 0).write_bytes(zipped(*entries.items(), (name, b"boo")))
    assert_refused(copy, "is not allowed")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_entry_that_is_there_twice_is_refused(copy: Path) -> None:
    entries = read_entries(shard_file(copy, 0))
    shard_file(copy, 0).write_bytes(zipped(*entries.items(), ("zarr.json", entries["zarr.json"])))
    assert_refused(copy, "appears twice")


def test_a_deflated_bomb_is_refused(copy: Path) -> None:
    entries = read_entries(shard_file(copy, 0)) | {"zarr.json": b" " * 10**7}
    shard_file(copy, 0).write_bytes(zipped(*entries.items(), compression=zipfile.ZIP_DEFLATED))
    assert_refused(copy, "is compressed")


def test_metadata_of_absurd_size_is_refused(copy: Path) -> None:
    entries = read_entries(shard_file(copy, 0))
    write_entries(shard_file(copy, 0), entries | {"zarr.json": b" " * (2**24 + 1)})
    assert_refused(copy, "of 16,777,217 bytes")


@pytest.mark.parametrize("field", [20, 24, 42, 8, 12, 16, 28, 30, 32])
@pytest.mark.parametrize("value", [0xFFFFFFFF, 0xFFFF, 0x7FFFFFF0, 1])
def test_a_directory_that_contradicts_the_file_is_refused_or_harmless(
    copy: Path, field: int, value: int
) -> None:
    content = bytearray(shard_file(copy, 0).read_bytes())
    wanted = open_cache(copy)[0]
    at = content.index(b"PK\1\2") + field
    width = 2 if field in (8, 28, 30, 32) else 4
    content[at : at + width] = (value & (256**width - 1)).to_bytes(width, "little")
    shard_file(copy, 0).write_bytes(content)
    try:
        read = open_cache(copy)[0]
    except CacheError:
        return
    assert (read.response_ids == wanted.response_ids).all()


@pytest.mark.parametrize("field", [4, 6, 8, 10, 12, 16, 20])
@pytest.mark.parametrize("value", [0xFFFFFFFF, 0xFFFF, 1])
def test_an_end_record_that_contradicts_the_file_is_refused(
    copy: Path, field: int, value: int
) -> None:
    content = bytearray(shard_file(copy, 0).read_bytes())
    width = 4 if field in (12, 16) else 2
    at = len(content) - 22 + field
    content[at : at + width] = (value & (256**width - 1)).to_bytes(width, "little")
    shard_file(copy, 0).write_bytes(content)
    assert_refused(copy)


# --- the arrays


def change_metadata(cache: Path, array: str, change: Callable[[Any], None]) -> None:
    entries = read_entries(shard_file(cache, 0))
    tree = json.loads(entries[f"{array}/zarr.json".lstrip("/")])
    change(tree)
    name = f"{array}/zarr.json".lstrip("/")
    write_entries(shard_file(cache, 0), entries | {name: json.dumps(tree).encode()})


def test_shapes_of_terabytes_are_refused_before_they_are_allocated(copy: Path) -> None:
    count = 10**11
    change_metadata(
        copy, "", lambda tree: tree["attributes"]["vlsi_cache"].update(num_tokens=count)
    )
    for array in token_arrays(open_cache(copy).manifest):

        def grow(tree: Any) -> None:
            tree["shape"][0] = count

        change_metadata(copy, array, grow)
    assert_refused(copy, "claim to hold")


@pytest.mark.parametrize(
    ("array", "inner", "rows"),
    [
        ("top_ids", True, 10**12),
        ("top_ids", False, 10**12),
        ("drawn_ids", True, 10**6),  # twelve million draws, whose decoding would take gigabytes
    ],
)
def test_chunks_of_terabytes_are_refused(copy: Path, array: str, inner: bool, rows: int) -> None:
    def grow(tree: Any) -> None:
        tree["chunk_grid"]["configuration"]["chunk_shape"][0] = rows
        if inner:
            tree["codecs"][0]["configuration"]["chunk_shape"][0] = rows

    change_metadata(copy, array, grow)
    assert_refused(copy, f"{array} has")


@pytest.mark.parametrize(
    "codecs",
    [
        [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "gzip", "configuration": {"level": 1}},
        ],
        [{"name": "bytes", "configuration": {"endian": "little"}}],
    ],
)
def test_codecs_without_bounds_or_without_checksum_are_refused(copy: Path, codecs: Any) -> None:
    def replace(tree: Any) -> None:
        tree["codecs"][0]["configuration"]["codecs"] = codecs

    change_metadata(copy, "entropy", replace)
    assert_refused(copy, "entropy has")


def test_metadata_nested_without_end_is_refused(copy: Path) -> None:
    entries = read_entries(shard_file(copy, 0))
    for name in ("zarr.json", "entropy/zarr.json"):
        bad = entries | {name: b'{"a":' * 100_000 + b"1" + b"}" * 100_000}
        write_entries(shard_file(copy, 0), bad)
        assert_refused(copy, "shard is damaged")


@pytest.mark.parametrize(
    "frame",
    [
        b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 2**50) + b"\x01\x00\x00",
        b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", CHUNK_BYTES + 1) + b"\x01\x00\x00",
        b"\x28\xb5\x2f\xfd\x00\x58\x01\x00\x00",  # does not say
        b"\x28\xb5\x2f\xfd",
        b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip",  # a frame to be skipped, before another
    ],
)
def test_a_compressed_chunk_that_would_burst_is_refused(frame: bytes) -> None:
    with pytest.raises(ValueError, match="would expand"):
        validate_frame(frame, CHUNK_BYTES)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 65_791, 65_792, 100_000])
def test_an_honest_chunk_passes(size: int) -> None:
    validate_frame(Zstd(level=3).encode(bytes(size))[:18], size)


COST = """
import re, sys
from pathlib import Path
from vlsi_cache.store import open_cache
from vlsi_cache.errors import CacheError

def peak():
    # of this program alone: ru_maxrss is that of whoever started it too
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

open_cache(sys.argv[1])[0]
before = peak()
try:
    open_cache(sys.argv[2])[0]
except CacheError as error:
    assert sys.argv[3] in str(error), error
else:
    raise AssertionError
assert peak() - before < 30_000, (before, peak())
"""


def assert_costs_no_memory(sound: Path, cache: Path, fault: str) -> None:
    """Refused in a process that takes no more than for an honest one."""
    subprocess.run([sys.executable, "-c", COST, sound, cache, fault], check=True, cwd="/")


@pytest.mark.parametrize("pad", [b"", b"\0", b"\0" * 100])
def test_a_chunk_that_bursts_costs_no_memory_wherever_it_lies(
    sound: Path, copy: Path, pad: bytes
) -> None:
    burst = Zstd(level=3).encode(bytes(2**28))
    entries = read_entries(shard_file(copy, 0))
    name = chunk_of(entries, "sample_ids")
    chunk = burst + crc32c(burst)
    index = struct.pack("<QQ", len(pad), len(chunk))
    entries[name] = pad + chunk + index + crc32c(index)
    write_entries(shard_file(copy, 0), entries)
    assert_costs_no_memory(sound, copy, "would expand")


def test_chunks_without_number_cost_no_memory(sound: Path, copy: Path) -> None:
    def shatter(tree: Any) -> None:
        tree["shape"] = [300_000]
        tree["chunk_grid"]["configuration"]["chunk_shape"] = [300_000]
        tree["codecs"][0]["configuration"]["chunk_shape"] = [1]

    change_metadata(copy, "sample_ids", shatter)
    assert_costs_no_memory(sound, copy, "sample_ids has 300,000 chunks in a file of")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda outer: outer[0]["configuration"].update(index_location="start"), "at the start"),
        (
            lambda outer: outer[0]["configuration"]["codecs"].insert(
                1, outer[0]["configuration"]["codecs"][1]
            ),
            "whose bounds",
        ),
        (lambda outer: outer.__setitem__(slice(None), unsharded()), "around its chunks"),
        (lambda outer: outer[0]["configuration"]["index_codecs"].pop(), "lack a checksum"),
        (
            lambda outer: outer[0]["configuration"]["codecs"].__setitem__(
                1, {"name": "vlsi-cache.bounded-zstd"}
            ),
            "whose bounds",
        ),
    ],
)
def test_any_other_chain_of_codecs_is_refused(
    copy: Path, change: Callable[[Any], Any], fault: str
) -> None:
    change_metadata(copy, "entropy", lambda tree: change(tree["codecs"]))
    assert_refused(copy, f"entropy has .*{fault}")


def unsharded() -> list[dict[str, Any]]:
    return [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "zstd", "configuration": {"level": 3, "checksum": False}},
        {"name": "crc32c"},
    ]


def crc32c(content: bytes) -> bytes:
    return int(crc32c_value(content)).to_bytes(4, "little")


@pytest.mark.parametrize(
    "value", ["1152921504606846976", "-1", "1.5", "1e3", "9" * 40, "NaN", '"7"', "null", "[7]"]
)
@pytest.mark.parametrize("field", ["num_tokens", "num_samples", "shard_index"])
def test_a_header_of_absurd_numbers_is_one_line_and_one_damage(
    copy: Path, field: str, value: str
) -> None:
    entries = read_entries(shard_file(copy, 0))
    metadata = json.loads(entries["zarr.json"])
    metadata["attributes"]["vlsi_cache"][field] = "absurd"
    entries["zarr.json"] = json.dumps(metadata).replace('"absurd"', value).encode()
    write_entries(shard_file(copy, 0), entries)
    assert_refused(copy)
    for indexed in (True, False):
        if not indexed:
            (copy / "index.json").unlink()
        found = verify_cache(copy)
        assert {damage.files[0] for damage in found.damages} == {"shards/00000.zarr.zip"}
        assert not any("pydantic" in damage.fault for damage in found.damages)


@pytest.mark.parametrize("name", ["manifest.json", "index.json", "shards/00000.json"])
def test_a_key_that_stands_twice_is_refused(copy: Path, name: str) -> None:
    text = (copy / name).read_text()
    twice = '"num_samples": 2' if name != "manifest.json" else '"num_samples": 5'
    assert twice in text
    (copy / name).write_text(text.replace(twice, f'"num_samples": 9, {twice}', 1))
    assert_refused(copy, rf"{name.replace('.', chr(92) + '.')}: .* is (damaged|not JSON)")
    assert {damage.files for damage in verify_cache(copy).damages} == {(name,)}


@pytest.mark.parametrize("name", ["zarr.json", "entropy/zarr.json"])
def test_a_key_that_stands_twice_in_a_shard_is_refused(copy: Path, name: str) -> None:
    entries = read_entries(shard_file(copy, 0))
    entries[name] = entries[name].replace(b'"zarr_format":3', b'"zarr_format":2,"zarr_format":3', 1)
    write_entries(shard_file(copy, 0), entries)
    assert_refused(copy, "stands twice")
