"""Real signals to real commands: a checkpoint, an exit code, and one line on how to go on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from support.commands import Job
from support.runs import make_recipe
from vlsi_cache.recipe import Recipe
from vlsi_cache.teacher import dump_teacher

ENDLESS = {"steps": 1_000_000, "save_every": 1_000_000}


class Command:
    """A command that runs in a process of its own.

    Args:
        recipe: its recipe.
        words: the command and its flags.
    """

    def __init__(self, recipe: Recipe, *words: str) -> None:
        file = Path(str(recipe.data.path)).with_name("recipe.yaml")
        file.write_text(yaml.safe_dump(json.loads(recipe.model_dump_json())), encoding="utf-8")
        self.process = Job("-m", "vlsi_cache.cli", *words, "--recipe", file)
        self.lines: list[str] = []

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.__exit__()  # endless steps, if the test has failed

    def wait_for(self, part: str) -> str:
        """Wait for a line that holds this part."""
        for line in self.process.stdout:
            self.lines.append(line)
            if part in line:
                return line
        raise AssertionError("".join(self.lines))

    def end(self) -> tuple[int, str]:
        """Wait for the end, and return its exit code and its last line."""
        self.lines += self.process.stdout.readlines()
        text = "".join(self.lines)
        assert "Traceback" not in text
        assert "Aborted" not in text
        assert "error" not in text
        return self.process.wait(), self.lines[-1]


def _checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


def test_a_signal_ends_training_with_a_checkpoint_and_the_next_run_goes_on(tmp_path: Path) -> None:
    recipe = make_recipe(
        tmp_path, stages=["finetuning"], finetuning={**ENDLESS, "save_every_minutes": None}
    )
    folder = recipe.output / "finetuning"
    with Command(recipe, "train-student") as first:
        first.wait_for("step 3 of")
        first.process.send_signal(signal.SIGINT)
        code, last = first.end()
    (step,) = _checkpoints(folder)
    assert code == 130
    assert last == (
        f"interrupted at step {step:,} of 1,000,000 of finetuning; "
        "run the same command again to go on\n"
    )
    with Command(recipe, "train-student") as second:
        second.wait_for(f"going on from checkpoint-{step}")
        second.wait_for(f"step {step + 1:,} of")
        second.process.send_signal(signal.SIGTERM)
        assert second.end()[0] == 143
    assert _checkpoints(folder)[-1] > step


def test_a_signal_in_the_first_stage_of_a_dump_begins_no_cache(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, teacher={"verbalization": ENDLESS})
    with Command(recipe, "dump-teacher") as command:
        command.wait_for("step 1 of")
        command.process.send_signal(signal.SIGUSR1)
        code, last = command.end()
    assert code == 128 + signal.SIGUSR1
    assert last.startswith("interrupted at step ")
    assert not Path(recipe.cache_path).exists()


@pytest.mark.parametrize("code", [1, 143])
def test_what_ends_with_an_interrupted_command_has_nothing_to_say(code: int) -> None:
    script = f"""
import sys
from vlsi_cache.cli import main
class Late:
    def __del__(self): raise RuntimeError("worker is killed by signal")
kept = Late()
def command():
    sys.exit({code})
main.cli = command
main.main()
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert ended.returncode == code
    assert ("worker is killed by signal" in ended.stderr) is (code == 1)


def test_a_second_signal_ends_a_command_that_waits(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    dump_teacher(recipe)
    cache = Path(recipe.cache_path)
    for path in (cache / "index.json", *(cache / "shards").glob("00002*")):
        path.unlink()
    recipe = recipe.model_copy(
        update={"interaction": recipe.interaction.model_copy(update={"follow": True, "steps": 100})}
    )
    with Command(recipe, "train-student") as command:
        command.wait_for("waiting for the cache")
        command.process.send_signal(signal.SIGINT)
        command.wait_for("a second ends at once")
        while command.process.poll() is None:  # those within a second count as the first
            command.process.send_signal(signal.SIGINT)
        assert command.process.wait() == 130
