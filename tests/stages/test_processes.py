"""Two processes under `accelerate launch`, on real gloo: one cache, one student."""

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
from vlsi_cache.stages.teacher import dump_teacher


def _launch(*arguments: object) -> str:
    launcher = Path(sys.executable).with_name("accelerate")
    options = ["--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    port = ["--main_process_port", "0", "--dynamo_backend", "no"]
    done = subprocess.run(
        [launcher, "launch", *options, *port, "-m", "vlsi_cache.cli", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
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


def test_two_processes_fill_one_cache_and_train_one_student(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    dump_teacher(recipe, lambda _: None)  # verbalizers by one process, for equal bytes
    alone = _shards(recipe.cache_path)
    together = recipe.model_copy(
        update={"cache": recipe.cache.model_copy(update={"path": tmp_path / "together"})}
    )
    file = _recipe_file(together, tmp_path / "recipe.yaml")
    _launch("dump-teacher", "--recipe", file)
    assert _shards(tmp_path / "together") == alone
    _launch("train-student", "--recipe", file)
    AutoModelForCausalLM.from_pretrained(recipe.student_path)
    assert not list(recipe.output.rglob("checkpoint-*"))
