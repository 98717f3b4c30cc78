"""Commands that tests fork: real processes, with files, folders and an environment of their own."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from support.commands import Job, run_job

SAYS = """
import os, sys
print(os.getcwd(), sys.argv, os.environ.get("COLUMNS"), os.getpid())
print(input(), file=sys.stderr)
sys.exit(7)
"""


def test_a_job_has_its_own_folder_arguments_environment_and_code(tmp_path: Path) -> None:
    with Job("-c", SAYS, "one two", cwd=tmp_path, env={"COLUMNS": "33"}) as job:
        said = job.end("given\n")
    assert said.splitlines()[0] == f"{tmp_path} ['-c', 'one two'] 33 {job.pid}"
    assert said.splitlines()[1] == "given"
    assert job.returncode == 7
    assert job.pid != os.getpid()


def test_output_and_errors_lie_apart_and_a_traceback_is_a_failure() -> None:
    done = run_job("-c", "print('said')\nraise ValueError('wrong')")
    assert (done.returncode, done.stdout) == (1, "said\n")
    assert done.stderr.endswith("ValueError: wrong\n")


def test_a_signal_ends_a_job_as_it_ends_an_interpreter() -> None:
    code = "import time\nprint('here', flush=True)\ntime.sleep(600)"
    for number in (signal.SIGINT, signal.SIGKILL):
        with Job("-c", code) as job:
            assert job.stdout.readline() == "here\n"
            assert job.poll() is None
            job.send_signal(number)
            assert job.wait() == -number


def test_a_job_computes_gradients_although_it_was_forked() -> None:
    code = "import torch\nx = torch.ones(3, requires_grad=True)\nx.sum().backward()\nprint(x.grad)"
    assert run_job("-c", code, check=True).stdout == "tensor([1., 1., 1.])\n"


def test_what_a_library_reads_as_it_is_imported_is_refused() -> None:
    with pytest.raises(AssertionError, match="HF_HOME"):
        run_job("-c", "", env={"HF_HOME": "/elsewhere"})
    with pytest.raises(AssertionError, match="OMP_NUM_THREADS"):
        run_job("-c", "", env={"OMP_NUM_THREADS": "2"})
