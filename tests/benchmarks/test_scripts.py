"""Every benchmark runs, and gives the figures that it promises: numbers, never judged by speed."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
PROMISED = {
    "loader": {"data_wait_fraction", "decode_over_consumption"},
    "objective": {
        "time_over_autograd",
        "memory_over_autograd",
        "time_over_two_matmuls",
        "time_20_over_1_candidates",
    },
    "student_step": {
        "time_over_plain",
        "memory_over_plain",
        "online_time_over_ours",
        "online_memory_over_ours",
        "arithmetic_ratio",
    },
}


def _run(name: str) -> dict[str, Any]:
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--quick", "--json", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_a_quick_run_gives_every_figure(name: str) -> None:
    result = _run(name)
    for figure in PROMISED[name]:
        assert math.isfinite(result[figure]), figure
        assert result[figure] > 0, figure
    assert {"device", "threads", "torch", "rounds", "size"} <= result.keys()
    if name == "objective":
        assert result["gradient_difference"] < 1e-4
        for rival in result["rivals"]:
            assert rival.keys() == {"name", "time_over_ours", "memory_over_ours"}


def test_every_script_is_tested() -> None:
    scripts = {path.stem for path in FOLDER.glob("*.py")} - {"measurement"}
    assert scripts == PROMISED.keys()
