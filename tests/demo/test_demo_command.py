"""`make demo`'s quick form, through the installed command, and once more to see it resume."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForImageTextToText, Qwen2VLForConditionalGeneration

COMMAND = Path(sys.executable).with_name("vlsi-cache")


def _demo(out: Path) -> tuple[dict[str, Any], str]:
    done = subprocess.run(
        [COMMAND, "demo", "--quick", "--json", "--out", out],
        check=True,
        capture_output=True,
        text=True,
        timeout=400,
    )
    return json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("demo") / "out"
    return out, _demo(out)[0]


def test_the_demo_reports_every_figure(demo: tuple[Path, dict[str, Any]]) -> None:
    _, summary = demo
    assert set(summary["accuracy"]) == {"floor", "teacher", "finetuned", "distilled"}
    assert all(0 <= share <= 1 for share in summary["accuracy"].values())
    assert summary["accuracy"]["floor"] > 0.3
    for name, (low, high) in summary["accuracy_interval"].items():
        assert low <= summary["accuracy"][name] <= high
    assert set(summary["divergence_nats"]) == {"finetuned", "distilled"}
    assert all(divergence > 0 for divergence in summary["divergence_nats"].values())
    assert summary["seconds"] > 0


def test_the_demos_student_is_an_ordinary_checkpoint(demo: tuple[Path, dict[str, Any]]) -> None:
    out, summary = demo
    model: Any = AutoModelForImageTextToText.from_pretrained(summary["paths"]["student"])
    assert type(model) is Qwen2VLForConditionalGeneration
    config = json.loads((out / "student" / "config.json").read_text())
    base = out / "from-scratch" / "student" / "model" / "config.json"
    assert config == json.loads(base.read_text())


def test_the_demos_cache_can_be_inspected(demo: tuple[Path, dict[str, Any]]) -> None:
    _, summary = demo
    statistics = json.loads(Path(summary["paths"]["statistics"]).read_text())
    assert statistics["complete"] is True
    shown = subprocess.run(
        [COMMAND, "inspect", summary["paths"]["cache"], "--json"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(shown.stdout) == statistics


def test_a_rerun_goes_on_where_the_demo_stopped(demo: tuple[Path, dict[str, Any]]) -> None:
    out, summary = demo
    weights = out / "student" / "model.safetensors"
    trained = out / "from-scratch" / "teacher" / "model" / "model.safetensors"
    teacher = trained.stat().st_mtime_ns
    expected = weights.read_bytes()
    # as if the demo had been stopped while the last stage of the student ran
    shutil.rmtree(out / "student")
    shutil.rmtree(out / "finetuning")
    again, log = _demo(out)
    assert weights.read_bytes() == expected
    assert trained.stat().st_mtime_ns == teacher
    assert "interaction  " not in log
    assert again["divergence_nats"] == summary["divergence_nats"]
    assert again["seconds"] > summary["seconds"]


def test_another_size_does_not_go_on_in_the_same_folder(
    demo: tuple[Path, dict[str, Any]],
) -> None:
    out, _ = demo
    done = subprocess.run([COMMAND, "demo", "--out", out], capture_output=True, text=True)
    assert done.returncode == 1
    assert "another size" in done.stderr
    assert "Traceback" not in done.stderr
