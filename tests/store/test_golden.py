"""Caches that earlier versions wrote stay readable for ever."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from support.golden import GOLDEN, as_json
from vlsi_cache.manifest import FORMAT_VERSION
from vlsi_cache.store import create_cache, open_cache, verify_cache

VERSIONS = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())


def test_there_is_a_golden_cache_of_every_version() -> None:
    versions = {int(name[1:].split("-")[0]) for name in VERSIONS}
    assert versions == set(range(1, FORMAT_VERSION + 1))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_golden_cache_says_what_it_always_said(version: str) -> None:
    cache = open_cache(GOLDEN / version)
    wanted = json.loads((GOLDEN / f"{version}.json").read_bytes())
    in_shards = [record for shard in cache.iter_shards() for record in shard]
    for records in (list(cache), in_shards):
        for record, said in zip(map(as_json, records), wanted, strict=True):
            assert record.keys() == said.keys()
            for name, value in said.items():
                if name in ("weights", "entropy"):
                    np.testing.assert_allclose(record[name], value, rtol=1e-6)
                else:
                    assert record[name] == value
    assert cache.failures() == {3: "image cannot be decoded"}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_golden_cache_is_sound_and_complete(version: str, tmp_path: Path) -> None:
    found = verify_cache(GOLDEN / version)
    assert (found.sound, found.complete, found.damages) == (True, True, ())
    copy = shutil.copytree(GOLDEN / version, tmp_path / "copy")
    assert create_cache(copy, open_cache(copy).manifest).missing_shards() == []
