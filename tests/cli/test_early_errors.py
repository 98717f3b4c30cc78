"""Slips are refused before torch is imported, in the words that the user typed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vlsi_cache.errors import RecipeError
from vlsi_cache.recipe import load_recipe

_RUN = (
    "import sys; from vlsi_cache.cli.main import cli\n"
    "try: cli(sys.argv[1:])\n"
    "finally: print('torch' in sys.modules, 'transformers' in sys.modules)"
)
_DATA = "--data rows.jsonl"


def _run(folder: Path, arguments: str) -> tuple[int, str, str]:
    (folder / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (folder / "recipe.yaml").write_text("cahe: {}\n")
    (folder / "model").mkdir(exist_ok=True)
    found = subprocess.run(
        [sys.executable, "-c", _RUN, *arguments.split()],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},  # the same answer with a network as without
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in found.stderr
    return found.returncode, found.stderr, found.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        ("check --teacher model --data absent.jsonl", 1, "absent.jsonl: there is no such data"),
        ("check --teacher model --data row.jsonl", 1, "Perhaps rows.jsonl is meant"),
        ("check --teacher model --data row", 1, "HF_HUB_OFFLINE forbids to ask the Hugging Face"),
        (f"check --teacher modl {_DATA}", 1, "modl: there is no such folder here, and HF_HUB_OF"),
        (f"check --teacher ./modl {_DATA}", 1, "Perhaps model is meant"),
        ("verify modl", 1, "modl: no cache here; found no modl in "),
        ("merge out modl", 1, "Perhaps model is meant"),
        ("push modl owner/name", 1, "modl: no such folder; found no modl in "),
        ("check --recipe recipe.yml", 2, "Perhaps recipe.yaml is meant"),
        ("check --teacher model --data *.json", 1, "*.json: no file has a name of this pattern"),
        (f"check --teacher ./absent {_DATA}", 1, "./absent: there is no such model folder"),
        (f"check {_DATA}", 2, "no model is named"),
        ("check --teacher model", 2, "no data is named"),
        (f"check --teacher model {_DATA} --max-length 0", 2, "error: --max-length: input should"),
        (f"check --teacher model {_DATA} --on-error stpo", 2, "error: --on-error: input should"),
        ("check --recipe absent.yaml", 2, "absent.yaml: recipe not found"),
        ("check --recipe recipe.yaml", 2, "cahe: unknown key, perhaps cache"),
        (f"dump-teacher {_DATA}", 2, "teacher.model: no model is named"),
        (f"dump-teacher {_DATA} --teacher a/b/c", 1, "a/b/c: there is no such model folder"),
        ("dump-teacher --teacher model --data a/b.jsonl", 1, "there is no such data file"),
        (f"dump-teacher {_DATA} --teacher model -k -1", 2, "error: --k: input should be"),
        ("dump-teacher --teacher ./no --data no.json", 1, "2 problems:\n  no.json: there"),
        (f"dump-teacher {_DATA} --teacher model --partition 0/2", 2, "--partition: this is not a"),
        (f"dump-teacher {_DATA} --partition 1/2", 2, "teacher.model: no model is named"),
        (
            f"dump-teacher {_DATA} --teacher model --device-map auto --max-memory 0=lots",
            2,
            "expected a size such as 70GiB, found 'lots'",
        ),
        (f"dump-teacher {_DATA} --teacher model --verbalizers no", 1, "no: no trained verbalizers"),
        (
            f"dump-teacher {_DATA} --teacher model --verbalizers model",
            1,
            "model: no trained verbalizers here; expected a folder with verbalizers.json; found ",
        ),
        (
            f"dump-teacher {_DATA} --teacher model --verbalizers rows.jsonl",
            1,
            "found a file. Leave teacher.verbalizers out to train them",
        ),
        (f"evaluate model {_DATA} --verbalizers no", 1, "no: no trained verbalizers here"),
        (
            f"train-student {_DATA} --student model --set student.verbalizers=nope",
            1,
            "nope: no trained verbalizers here",
        ),
        (f"evaluate model {_DATA} --cache no", 1, "no: no cache here"),
        (f"train-student {_DATA} --student model --cache no", 1, "no: no cache here"),
        ("export-exits absent out", 1, "absent: no such folder"),
        (f"train-student {_DATA} --student /absent", 1, "/absent: there is no such model folder"),
        (f"train-student {_DATA} --student model --stages foo", 2, "error: --stages: input should"),
        (
            f"train-student {_DATA} --student model --dtype float16",
            2,
            "--dtype: float16 can",
        ),
    ],
)
def test_a_slip_is_refused_before_torch_is_imported(
    arguments: str, code: int, problem: str, tmp_path: Path
) -> None:
    status, stderr, stdout = _run(tmp_path, arguments)
    assert status == code, stderr
    assert stdout.splitlines()[-1] == "False False"
    assert problem in stderr
    assert "recipe.json" not in stderr or "cahe" in stderr


@pytest.mark.parametrize(
    "command",
    [
        f"check --teacher model {_DATA}",
        f"plan --teacher model {_DATA}",
        "export-exits model out",
        f"dump-teacher --teacher model {_DATA}",
        f"train-student --student model --stages verbalization {_DATA}",
        f"evaluate model {_DATA}",
        "demo --quick",
    ],
)
def test_a_command_says_that_it_imports_before_it_does(command: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "model").mkdir()
    # an import that ends at once: what was said by then came before it
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from vlsi_cache.cli.main import cli\n"
        "cli(sys.argv[1:])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, *command.split()],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert found.returncode == 1
    assert found.stdout.splitlines()[0] == "importing torch and transformers"


def test_flags_and_keys_are_named_as_they_were_given(tmp_path: Path) -> None:
    arguments = "check --limit 0 --set data.splt=x --teacher model"
    _, stderr, _ = _run(tmp_path, arguments)
    first, *lines, last = stderr.splitlines()
    assert first == "error: 2 problems:"
    assert lines == [
        "  --limit: input should be greater than 0, found 0",
        "  --set data.splt: unknown key, perhaps split",
    ]
    assert last.startswith("Every key is described in ")
    _, stderr, _ = _run(tmp_path, "dump-teacher --limit 0 --on-error stpo")
    assert stderr.splitlines() == [
        "error: 2 problems:",
        "  --limit: input should be greater than 0, found 0",
        "  --on-error: input should be 'stop' or 'skip', found 'stpo'",
        "See --help.",
    ]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            "dump-teacher r.yaml --verbalizers model",
            "teacher.taps: contradicts --verbalizers, which name their own taps "
            "(--set teacher.taps=null leaves these out)",
        ),
        (
            "dump-teacher r.yaml --taps 1 --set teacher.verbalizers=model",
            "--taps: contradicts teacher.verbalizers, which name their own taps",
        ),
        (
            "dump-teacher r.yaml --set teacher.taps=null --steps 3",
            "teacher.verbalization.epochs: contradicts --steps: give one of the two "
            "(--set teacher.verbalization.epochs=null leaves this one out)",
        ),
        (
            "train-student r.yaml --finetuning-steps 3",
            "finetuning.warmup_steps: is above --finetuning-steps (3)",
        ),
        (
            "dump-teacher r.yaml --tensor-parallel 2",
            "teacher.device_map: contradicts --tensor-parallel: give one of the two",
        ),
        (
            "train-student r.yaml --output new --set interaction.inner=none "
            "--set interaction.output=none --set interaction.inner_schedule.end=0",
            "needs an output loss, which is none",
        ),
        ("dump-teacher r.yaml --data rows.jsonl", "data.sources: is given beside --data: give one"),
    ],
)
def test_a_contradiction_names_the_flag_that_was_typed_and_the_way_out(
    command: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_text(
        "data: {sources: [{path: rows.jsonl}]}\n"
        "teacher: {model: model, taps: [1], verbalization: {epochs: 1}, device_map: auto}\n"
        "finetuning: {warmup_steps: 5}\n"
    )
    code, stderr, _ = _run(tmp_path, command)
    assert code == 2
    assert said in stderr


@pytest.mark.parametrize(
    "way_out",
    [
        "teacher.verbalizers=v teacher.taps=null",
        "teacher.verbalization.steps=3 teacher.verbalization.epochs=null",
        "teacher.tensor_parallel=2 teacher.device_map=null",
        "data.path=rows.jsonl data.sources=[]",
    ],
)
def test_the_way_out_of_a_contradiction_leads_out(way_out: str, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(
        "data: {sources: [{path: rows.jsonl}]}\n"
        "teacher: {model: model, taps: [1], verbalization: {epochs: 1}, device_map: auto}\n"
    )
    given, *out = way_out.split()
    with pytest.raises(RecipeError, match=f"--set {re.escape(out[0])}"):
        load_recipe(file, [given])
    load_recipe(file, [given, *out])
