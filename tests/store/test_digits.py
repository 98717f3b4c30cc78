"""One changed digit in any file: verifying names that file, and no read gives another number."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.archives import shard_file
from support.caches import write_part
from vlsi_cache.errors import CacheError
from vlsi_cache.store import Cache, merge_caches, open_cache, verify_cache

READS: tuple[Callable[[Cache], Any], ...] = (
    lambda cache: [pickle.dumps(cache[index]) for index in range(len(cache))],
    lambda cache: [cache.outline(shard) for shard in range(cache.manifest.num_shards)],
    lambda cache: (cache.num_tokens, cache.failures()),
    lambda cache: cache.statistics(),
)
FILES = [
    "manifest.json",
    "index.json",
    "processor.json",
    "processor/tokenizer.json",
    "shards/00000.json",
    "shards/00001.json",
]
OF_A_HASH = 16
"""Of the digits of a hash every sixteenth is changed. All of them go one way through the code."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_part(tmp_path_factory.mktemp("digits") / "cache", [5, 6, 7])


def read(path: Path, how: Callable[[Cache], Any]) -> Any:
    """What a read gives, or nothing where it refuses."""
    try:
        return how(open_cache(path))
    except CacheError:
        return None


def changed_digits(content: bytes) -> Iterator[bytes]:
    hashes = [match.span() for match in re.finditer(rb"[0-9a-f]{64}", content)]
    for match in re.finditer(rb"[0-9]", content):
        at = match.start()
        if at % OF_A_HASH and any(start <= at < stop for start, stop in hashes):
            continue
        yield content[:at] + b"%d" % ((int(match[0]) + 1) % 10) + content[at + 1 :]


def assert_found(path: Path, key: str, truth: list[Any]) -> list[bool]:
    """Whether each read refuses. What it gives else is true."""
    blamed = {file for damage in verify_cache(path).damages for file in damage.files}
    assert blamed == {key}
    found = [read(path, how) for how in READS]
    assert all(value is None or value == true for value, true in zip(found, truth, strict=True))
    return [value is None for value in found]


@pytest.mark.parametrize("key", FILES)
def test_a_changed_digit_of_a_json_file_is_found(cache: Path, key: str) -> None:
    truth = [read(cache, how) for how in READS]
    assert None not in truth
    content = (cache / key).read_bytes()
    try:
        for changed in changed_digits(content):
            (cache / key).write_bytes(changed)
            refused = assert_found(cache, key, truth)
            # the processor's files are read when they are needed, and shown by a hash alone
            assert all(refused) or key == "processor/tokenizer.json"
    finally:
        (cache / key).write_bytes(content)


@pytest.mark.parametrize("offset", [0, 5])
def test_a_changed_byte_of_a_shard_is_found_or_changes_nothing(cache: Path, offset: int) -> None:
    truth = [read(cache, how) for how in READS]
    content = shard_file(cache, 1).read_bytes()
    try:
        for at in range(offset, len(content), 397):
            changed = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
            shard_file(cache, 1).write_bytes(changed)
            assert_found(cache, "shards/00001.zarr.zip", truth)
    finally:
        shard_file(cache, 1).write_bytes(content)


@pytest.mark.parametrize("indexed", [True, False])
def test_a_merged_manifest_is_known_by_its_index_or_by_its_parts(
    tmp_path: Path, indexed: bool
) -> None:
    parts = [write_part(tmp_path / name, [number]) for name, number in (("a", 0), ("b", 1))]
    merge_caches(tmp_path / "all", parts)
    if not indexed:
        (tmp_path / "all/index.json").unlink()
    manifest = tmp_path / "all/manifest.json"
    content = manifest.read_bytes()
    for old, new in (
        (b'"vocab_size": 500', b'"vocab_size": 501'),
        (b"\n  2,\n  6,", b"\n  3,\n  6,"),
        (b'"seed": 0', b'"seed": 1'),
    ):
        assert content.count(old) == 1
        manifest.write_bytes(content.replace(old, new))
        (damage,) = verify_cache(tmp_path / "all").damages
        assert damage.files == ("manifest.json",)
        assert read(tmp_path / "all", list) is None
