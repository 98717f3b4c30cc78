"""The kernels against their plain forms, by Triton's interpreter on the CPU.

The interpreter must be chosen before Triton is imported, and other tests may have imported it. So
the checks of ``checks.py`` run in a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vlsi_cache.kernels import has_kernels, kernels_work

CHECKS = Path(__file__).parent / "checks.py"


def test_kernels_agree_with_their_plain_forms() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore"}
    environment.pop("PYTEST_ADDOPTS", None)
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", str(CHECKS)],
        cwd=CHECKS.parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert " passed" in found.stdout
    assert "skipped" not in found.stdout


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_other_devices_take_the_plain_forms(device: str) -> None:
    assert not has_kernels(torch.device(device))


def test_kernels_that_cannot_be_compiled_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """As without a C compiler: here Triton finds no device to compile for."""
    kernels_work.cache_clear()
    assert not kernels_work(torch.device("cpu"))
    assert not kernels_work(torch.device("cpu"))
    warnings = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "Triton's kernels do not work here" in warnings[0]


def test_an_environment_variable_turns_them_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLSI_CACHE_KERNELS", "0")
    assert not has_kernels(torch.device("cuda"))
