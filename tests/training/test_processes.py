"""Two processes, as `accelerate launch` starts them, on real gloo: one cache, one student."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoModelForCausalLM

from support.runs import make_recipe
from vlsi_cache.recipe import Recipe
from vlsi_cache.teacher import dump_teacher

SHARES = """
import torch
from vlsi_cache.training.processes import (
    is_main_process, leave_together, resolve_device, slice_of
)
resolve_device("cpu")
# another writer was at work between the two looks
print(*slice_of([0, 1, 2, 3, 4] if is_main_process() else [0, 2, 3, 4]), flush=True)
leave_together()
assert not torch.distributed.is_initialized(), "a rank that exits first would abort the other"
"""


def _launch(*arguments: object) -> str:
    # what accelerate launch runs where there are GPUs; with --cpu it starts one process only
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc_per_node", "2", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _recipe_file(recipe: Recipe, path: Path) -> Path:
    raw: dict[str, Any] = json.loads(recipe.model_dump_json())
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def _shards(cache: Path) -> dict[str, bytes]:
    files = sorted(path for path in (cache / "shards").rglob("*") if path.is_file())
    return {str(path.relative_to(cache)): path.read_bytes() for path in files}


def test_processes_leave_nothing_out_although_each_finds_another_list(tmp_path: Path) -> None:
    script = tmp_path / "shares.py"
    script.write_text(SHARES, encoding="utf-8")
    printed = sorted(line.split() for line in _launch(script).splitlines())
    assert printed == [["0", "2", "4"], ["1", "3"]]


FAILS = """
import logging, sys
from vlsi_cache.errors import DataError
from vlsi_cache.training.processes import leave_together, on_main_process, resolve_device

def fail():
    raise DataError("the disk is on fire", where="student")

logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
device = resolve_device("cpu")
try:
    on_main_process(fail)
except Exception as error:
    print(type(error).__name__, error, flush=True)
leave_together()
"""


def test_all_processes_stop_where_the_main_one_fails(tmp_path: Path) -> None:
    """None waits for one that has gone; and a command says how many processes it has."""
    script = tmp_path / "fails.py"
    script.write_text(FAILS, encoding="utf-8")
    assert sorted(_launch(script).splitlines()) == [
        "2 processes on cpu",
        "DataError student: the disk is on fire",
        "StageError student: the main process stopped: the disk is on fire",
    ]


def test_two_processes_fill_one_cache_and_train_one_student(tmp_path: Path) -> None:
    # the longest third of the conversations fails, and each process finds a part of them
    skip = {"on_error": "skip"}
    recipe = make_recipe(tmp_path, num_samples=40, data={"max_length": 60}, cache=skip)
    dump_teacher(recipe, lambda _: None)  # verbalizers by one process, for equal bytes
    alone = _shards(recipe.cache_path)
    together = recipe.model_copy(
        update={"cache": recipe.cache.model_copy(update={"path": tmp_path / "together"})}
    )
    file = _recipe_file(together, tmp_path / "recipe.yaml")
    _launch("-m", "vlsi_cache.cli", "dump-teacher", "--recipe", file)
    assert _shards(tmp_path / "together") == alone
    said = _launch("-m", "vlsi_cache.cli", "train-student", "--recipe", file)
    for stage in ("verbalization", "interaction", "finetuning"):
        assert said.count(f"{stage} leaves out 13 of 40 samples") == 1
    AutoModelForCausalLM.from_pretrained(recipe.student_path)
    assert not list(recipe.output.rglob("checkpoint-*"))
