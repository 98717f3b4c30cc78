"""Caches do not depend on the order in which an interpreter keeps its sets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.runs import make_recipe

_DUMP = """
import json, sys
from vlsi_cache.recipe import recipe_from_mapping
from vlsi_cache.teacher import dump_teacher
dump_teacher(recipe_from_mapping(json.loads(sys.stdin.read()), where="test"))
"""


def _contents(folder: Path) -> dict[str, bytes]:
    """What the files of a cache's shards hold."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if "shards/" in name}


def test_two_interpreters_make_the_same_cache(tmp_path: Path) -> None:
    """They are fresh ones. Those of other tests are forked, and share one seed."""
    made = make_recipe(tmp_path)
    jobs = []
    for seed in ("1", "2"):
        text = made.model_copy(update={"output": tmp_path / seed}).model_dump_json()
        job = subprocess.Popen(
            [sys.executable, "-c", _DUMP],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            text=True,
        )
        jobs.append((job, text))
    said = [job.communicate(text)[1] for job, text in jobs]
    assert [job.returncode for job, _ in jobs] == [0, 0], said
    first, second = (_contents(tmp_path / seed / "cache") for seed in ("1", "2"))
    assert first == second
    assert first
