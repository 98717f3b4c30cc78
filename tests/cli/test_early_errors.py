"""Slips are refused before torch is imported, in the words that the user typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
        ("dump-teacher --teacher ./no --data no.json", 1, "2 problems: (1) no.json"),
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


def test_flags_and_keys_are_named_as_they_were_given(tmp_path: Path) -> None:
    arguments = "check --limit 0 --set data.splt=x --teacher model"
    _, stderr, _ = _run(tmp_path, arguments)
    assert "flags: recipe has 2 problems: " in stderr
    assert "--limit: input should be greater than 0, found 0" in stderr
    assert "data.splt: unknown key, perhaps split" in stderr
