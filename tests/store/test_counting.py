"""Counting by several processes, when the system ends one."""

from __future__ import annotations

import logging
import multiprocessing
import threading
from pathlib import Path

import pytest

from support.caches import make_cache, make_manifest
from vlsi_cache.store import open_cache, summarize_cache


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make_cache(tmp_path / "cache", make_manifest(num_samples=12, samples_per_shard=2))
    return tmp_path / "cache"


def test_one_process_counts_again_where_several_are_killed(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def kill() -> None:
        while not (children := multiprocessing.active_children()):
            pass
        children[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with caplog.at_level(logging.WARNING):
        found = summarize_cache(open_cache(path), processes=2)
    killer.join()
    assert "One process counts everything again" in caplog.text
    assert found == summarize_cache(open_cache(path))
