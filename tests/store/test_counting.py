"""Counting by several processes, when the system ends one or the user ends all."""

from __future__ import annotations

import logging
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from support.caches import make_cache, make_manifest
from vlsi_cache.store import open_cache, summarize_cache

INTERRUPTED = """
import multiprocessing, os, signal, sys, threading
from vlsi_cache.store import open_cache, summarize_cache

def interrupt():
    while not multiprocessing.active_children():
        pass
    os.killpg(os.getpgrp(), signal.SIGINT)

if __name__ == "__main__":
    # what a shell starts in the background ignores it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        summarize_cache(open_cache(sys.argv[1]), processes=2)
    except KeyboardInterrupt:
        print("interrupted")
"""


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
    assert "the system ended a process that counts, perhaps for want of memory" in caplog.text
    assert "One process counts everything again" in caplog.text
    assert found == summarize_cache(open_cache(path))


def test_an_interruption_ends_all_processes_without_a_word_of_theirs(
    path: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED, "utf-8")
    done = subprocess.run(
        [sys.executable, str(script), str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("interrupted\n", "", 0)


def test_a_script_without_a_main_guard_is_run_once(path: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from vlsi_cache.store import open_cache, summarize_cache\n"
        "print(summarize_cache(open_cache(sys.argv[1]), processes=2).num_tokens)\n",
        "utf-8",
    )
    done = subprocess.run(
        [sys.executable, str(script), str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{summarize_cache(open_cache(path)).num_tokens}\n"
    assert "a process that counts could not start or failed" not in done.stderr


def test_shards_with_a_gap_are_counted_alike_by_one_process_and_by_two(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    make_cache(path, make_manifest(num_samples=140, samples_per_shard=1))  # runs of three shards
    for name in ("index.json", "shards/00004.zarr.zip", "shards/00004.json"):
        (path / name).unlink()
    found = summarize_cache(open_cache(path), processes=2)
    assert found == summarize_cache(open_cache(path), processes=1)
    assert found.num_samples == 139
