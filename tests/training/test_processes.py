"""Two processes, as `accelerate launch` starts them, on real gloo: one cache, one student."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoModelForCausalLM

from support.commands import Job, places
from support.runs import make_recipe
from vlsi_cache.recipe import Recipe
from vlsi_cache.teacher import dump_teacher

SHARES = """
import torch
from vlsi_cache.errors import CacheError, VlsiCacheError
from vlsi_cache.recipe import load_recipe
from vlsi_cache.training.processes import (
    found_by_main_process, is_main_process, leave_together, raise_together, resolve_device, slice_of
)
resolve_device("cpu")
# another writer was at work between the two looks
print(*slice_of([0, 1, 2, 3, 4] if is_main_process() else [0, 2, 3, 4]), flush=True)
def look(fails):
    if fails == is_main_process():
        raise CacheError("cannot be looked at", problems=["one", "two"])
    return 7
assert found_by_main_process(lambda: look(False)) == 7, "the other process does not look"
try:
    found_by_main_process(lambda: look(True))
except VlsiCacheError as error:
    assert str(error).endswith("cannot be looked at:\\n  one\\n  two"), error
else:
    raise AssertionError("one process goes on alone")
problem = None
if not is_main_process():
    try:
        load_recipe(None, ["cache.k=-1", "teacher.modle=x"])
    except VlsiCacheError as error:
        problem = error
try:
    raise_together(problem)
except VlsiCacheError as error:
    assert str(error).startswith("flags: recipe has 2 problems:\\n  teacher.modle: "), error
    assert set(error.problem_by_path) == {"cache.k", "teacher.modle"}
else:
    raise AssertionError("one process goes on alone")
leave_together()
assert not torch.distributed.is_initialized(), "a rank that exits first would abort the other"
"""


def _start_two(*arguments: object) -> list[str]:
    """Run two processes, as a launcher starts them, and return what each printed."""
    with ExitStack() as jobs:
        tests = Path(__file__).parents[1]
        started = [jobs.enter_context(Job(*arguments, cwd=tests, env=env)) for env in places(2)]
        printed = [job.end() for job in started]
    assert [job.returncode for job in started] == [0, 0], printed
    return printed


def _launch(*arguments: object) -> list[str]:
    """Launch two processes and return what each printed, the main one first."""
    # what accelerate launch runs where there are GPUs; with --cpu it starts one process only
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    with tempfile.TemporaryDirectory() as logs:
        # each process prints into its own file: on one pipe, two lines mix now and then
        apart = ["--nproc_per_node", "2", "--redirects", "1", "--log-dir", logs]
        done = subprocess.run(
            [*launcher, *apart, *map(str, arguments)],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "ACCELERATE_USE_CPU": "true",
                "PYTHONPATH": str(Path(__file__).parents[1]),
            },
            capture_output=True,
            text=True,
            timeout=300,
        )
        printed = [path.read_text() for path in sorted(Path(logs).rglob("stdout.log"))]
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(printed) == 2
    return printed


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
    assert _launch(script) == ["0 2 4\n", "1 3\n"]


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
    assert _start_two(script) == [
        "2 processes on cpu\nDataError student: the disk is on fire\n",
        "StageError student: the main process stopped: the disk is on fire\n",
    ]


SHARES_THE_READING = """
import logging, sys
from support.processors import text_tokenizer
from vlsi_cache.cli.terminal import log_to
from vlsi_cache.data import BatchEncoder, report_changed_samples
from vlsi_cache.recipe import Recipe
from vlsi_cache.training import begin_run
from vlsi_cache.training.processes import is_main_process, leave_together

log_to("stdout")
recipe = Recipe(
    data={"path": sys.argv[1]}, output=sys.argv[2], device="cpu",
    interaction={"matching": {"strategy": "uniform", "temperature": 2.0}},
)
run = begin_run(recipe, "student")
encoder = BatchEncoder(text_tokenizer("chatml"), max_length=None)
logging.getLogger("vlsi_cache.data.encoding").setLevel(logging.ERROR)
encoder([run.data[0]] if is_main_process() else run.data[:2])
logging.getLogger("vlsi_cache.data.encoding").setLevel(logging.INFO)
report_changed_samples()
print([sample.sample_id for sample in run.data], run.fingerprint(), flush=True)
leave_together()
"""


def test_one_process_reads_the_data_and_speaks_for_all(tmp_path: Path) -> None:
    script, data = tmp_path / "reads.py", tmp_path / "rows.jsonl"
    script.write_text(SHARES_THE_READING, encoding="utf-8")
    rows = [{"id": "a", "mood": 1, "prompt": "<|im_end|>", "completion": c} for c in "xy"]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    printed = _start_two(script, data, tmp_path / "run")
    first, second = (lines.splitlines() for lines in printed)
    assert len(second) == 1
    assert second[0].startswith("['a', 'a#2'] ")
    assert first[-1] == second[0]
    assert sorted(first[:-1]) == sorted(
        [
            "2 processes on cpu",
            "warning: 2 samples spell control tokens; a space was put into each of them",
            f"warning: {data}: 1 sample has the id of another; it is numbered, such as a#2",
            "checking settings, folders and models",
            "warning: columns not read: mood",
            "fingerprinting the data (2 rows)",
            "warning: interaction.matching.temperature has no effect: uniform has none",
            "reading and validating the data (2 rows)",
        ]
    )


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
    _start_two("-m", "vlsi_cache.cli", "dump-teacher", "--recipe", file)
    assert _shards(tmp_path / "together") == alone
    said = _start_two("-m", "vlsi_cache.cli", "train-student", "--recipe", file)
    for stage in ("verbalization", "interaction", "finetuning"):
        assert said[0].count(f"{stage} leaves out 13 of 40 samples") == 1
        assert said[1].count("leaves out") == 0
    AutoModelForCausalLM.from_pretrained(recipe.student_path)
    assert not list(recipe.output.rglob("checkpoint-*"))
