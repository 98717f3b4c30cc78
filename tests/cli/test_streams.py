"""Output that cannot be written: one line for a full disk, silence for a pipe that nobody reads."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from support.caches import make_cache
from support.commands import Job, run_job
from vlsi_cache.cli.streams import LineHandler

_FULL = "error: standard output cannot be written (No space left on device)\n"
pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "cache"
    make_cache(path)
    return path


def _into(stdout: int, *words: object) -> tuple[int, str]:
    """Run a command into a file, and return its exit code and its errors."""
    read, write = os.pipe()
    with Job("-m", "vlsi_cache.cli", *words, stdout=stdout, stderr=write) as job:
        os.close(write)
        job.stdin.close()
        code = job.wait()
    with os.fdopen(read, encoding="utf-8") as errors:
        return code, errors.read()


@pytest.mark.parametrize("command", ["verify", "inspect"])
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_full_disk_is_said_in_one_line(command: str, form: tuple[str, ...], cache: Path) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123 (a device)
        assert _into(full.fileno(), command, cache, *form) == (1, _FULL)
        assert _into(full.fileno(), "--help") == (1, _FULL)


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_a_pipe_that_nobody_reads_ends_a_command_quietly(command: str, cache: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    code, said = _into(write, command, cache)
    os.close(write)
    assert (code, said) == (1, "")


def test_errors_that_nobody_can_read_end_a_command_without_them(tmp_path: Path) -> None:
    words = ("-m", "vlsi_cache.cli", "verify", tmp_path / "none")
    with open("/dev/full", "w") as full, Job(*words, stderr=full.fileno()) as job:  # noqa: PTH123
        job.stdin.close()
        assert job.wait() == 1


def test_other_errors_of_the_system_are_no_streams(tmp_path: Path) -> None:
    done = run_job("-m", "vlsi_cache.cli", "verify", tmp_path / "none")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "standard output" not in done.stderr


def test_work_goes_on_without_a_log_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123 (a device)
        handler = LineHandler(full)
        logger = logging.getLogger("vlsi_cache_streams_test")
        logger.propagate = False
        logger.addHandler(handler)
        for _ in range(3):
            logger.warning("a line")
        logger.removeHandler(handler)
    handler.stream.close()
    said = capsys.readouterr().err
    assert said == (
        "the log goes no further: standard error cannot be written (No space left on device)\n"
    )
