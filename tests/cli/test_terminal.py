"""What a user sees: a line that is written over in a terminal, plain lines in a file."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import click
from click.testing import CliRunner

from support.runs import make_recipe, save_text_model
from vlsi_cache import phases
from vlsi_cache.cli.main import cli
from vlsi_cache.cli.next_step import Given, next_command, remember_given
from vlsi_cache.cli.terminal import counting

SCRIPT = """
import logging, time
from vlsi_cache.cli.terminal import log_to
from vlsi_cache import phases
from vlsi_cache.phases import phase
phases._LIVE_SECONDS = phases._LINE_SECONDS = 0.001
log_to("stdout")
seen = []
class Seen(logging.Handler):
    def emit(self, record):
        seen.append((record.levelno, "4 of 10" in record.getMessage()))
logging.getLogger("vlsi_cache").addHandler(Seen())
with phase("first", total=10, unit="rows") as one:
    one.advance(4)
    while seen.count((20, True)) < 2:  # a live line lies between the two
        pass
    one.say("a line of its own")
    logging.getLogger("vlsi_cache.x").warning("mind %s", "this")
print("the end")
"""


def _in_terminal(term: str = "xterm") -> str:
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": term, "COLUMNS": "80"}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=child, stderr=child, stdin=child, env=environment
    )
    os.close(child)
    shown = b""
    try:
        while part := os.read(parent, 4096):
            shown += part
    except OSError:
        pass  # Linux ends a terminal like this
    os.close(parent)
    assert process.wait() == 0, shown
    return shown.decode()


def test_a_terminal_has_a_live_line_that_leaves_nothing_behind() -> None:
    shown = _in_terminal()
    assert "first: 4 of 10 rows" in shown
    assert "remaining" in shown
    kept = [line for line in shown.split("\r\n") if "\x1b" not in line]
    assert kept[0] == "first (10 rows)"
    assert "\x1b[2K" in shown, "the live line is wiped"
    assert shown.endswith("the end\r\n")
    assert "a line of its own\r\nwarning: mind this\r\n" in shown


def test_a_terminal_that_writes_nothing_over_has_plain_lines() -> None:
    shown = _in_terminal("dumb")
    assert "\x1b" not in shown
    assert "first: 4 of 10 rows  " in shown, "the line that a log file has each minute"


def test_a_file_has_plain_lines() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "first (10 rows)"
    assert lines[-4].startswith("first: 4 of 10 rows  ")
    assert lines[-3:] == ["a line of its own", "warning: mind this", "the end"]
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_the_first_line_comes_before_the_slow_imports(tmp_path: Path) -> None:
    code = (
        "import sys, vlsi_cache.cli.terminal as terminal\n"
        "def stop():\n"
        "    heavy = {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
        "    raise SystemExit(f'before: {sorted(heavy)}')\n"
        "import builtins\n"
        "terminal.phase = lambda what: stop()\n"
        "from vlsi_cache.cli.main import main\n"
        "main()\n"
    )
    save_text_model(tmp_path / "teacher")
    done = subprocess.run(
        [sys.executable, "-c", code, "dump-teacher", "--data", __file__, "--teacher", "teacher"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stderr == "before: []\n"


def test_each_command_ends_with_the_next_and_a_second_run_has_nothing_to_do(
    tmp_path: Path,
) -> None:
    recipe = make_recipe(tmp_path / "a folder")
    raw = json.loads(recipe.model_dump_json())
    data, student = raw["data"]["path"], raw["student"]["model"]
    raw["data"]["path"] = raw["student"]["model"] = None
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(raw), encoding="utf-8")
    given = ["--recipe", str(file), "--set", "finetuning.steps=2", "--data", data]
    first = CliRunner().invoke(cli, ["dump-teacher", *given])
    assert first.exit_code == 0, first.output
    next_line = first.stdout.splitlines()[-1]
    assert next_line == (
        f"next: vlsi-cache train-student --recipe {file} --student MODEL --data '{data}' "
        "--set finetuning.steps=2"
    )
    again = CliRunner().invoke(cli, ["dump-teacher", *given])
    assert "verbalization: finished before, nothing to do" in again.stdout
    assert "teacher pass: no shard is missing, nothing to do" in again.stdout
    trained = CliRunner().invoke(cli, ["train-student", *given, "--student", student])
    assert trained.exit_code == 0, trained.output
    assert trained.stdout.splitlines()[-3:] == [
        f"student: {recipe.student_path}",
        f'load it with: transformers.AutoModelForCausalLM.from_pretrained("{recipe.student_path}")',
        f"next: vlsi-cache evaluate '{recipe.student_path}' --data HELD-OUT",
    ]
    assert "loss" in trained.stdout
    assert "each  learning_rate" in trained.stdout, "stage one's loss is a sum over taps"
    again = CliRunner().invoke(cli, ["train-student", *given, "--student", student])
    assert again.stdout.count("nothing to do") == 3
    (Path(recipe.student_path) / "config.json").write_text("{", encoding="utf-8")
    broken = CliRunner().invoke(cli, ["train-student", *given, "--student", student])
    assert broken.exit_code == 1
    assert f"error: {recipe.student_path}/config.json: the file is not JSON (" in broken.stderr


def test_the_next_command_has_the_flags_that_were_typed() -> None:
    flags = {
        "data.path": "a b.jsonl",
        "interaction.follow": True,
        "interaction.follow_timeout_seconds": 60.0,
        "student.taps": [1, 3],
        "data.max_length": None,
    }
    with click.Context(cli):
        remember_given(Given(Path("r.yaml"), ("seed=1",), flags))
        assert next_command("train-student", {}) == (
            "vlsi-cache train-student --recipe r.yaml --data 'a b.jsonl' --follow "
            "--follow-timeout 60.0 --taps 1,3 --set seed=1"
        )
        remember_given(Given(None, (), {"data.max_length": 100}))
        assert next_command("dump-teacher", {"--taps": "1,3"}) == (
            "vlsi-cache dump-teacher --taps 1,3 --set data.max_length=100"
        )
        assert next_command("plan", {}) == "vlsi-cache plan --max-length 100"


def test_a_misspelt_command_names_the_right_one() -> None:
    result = CliRunner().invoke(cli, ["dump-techer"])
    assert result.exit_code == 2
    assert "Did you mean 'dump-teacher'?" in result.output


def test_what_calls_back_is_counted_in_its_own_unit() -> None:
    with counting("verifying a", "MB", each=10**6) as report:
        report(0, 10_000_001)
        report(2_500_000, 10_000_001)
        (one,) = phases._active
        assert one.state().startswith("verifying a: 3 of 11 MB  ")
        report(10_000_001, 10_000_001)
        assert one.state().startswith("verifying a: 11 of 11 MB  ")


def test_a_line_that_another_library_repeats_is_printed_once() -> None:
    script = """
import logging
from vlsi_cache.cli.terminal import import_libraries
import_libraries()
import_libraries()
for number in (1, 2, 1):
    for _ in range(100):
        logging.getLogger("another.library").warning("cast from %s", number)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert [line for line in done.stderr.splitlines() if "cast" in line] == [
        "cast from 1",
        "cast from 2",
    ]
