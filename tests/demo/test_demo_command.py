"""`make demo`'s quick form, through the installed command, and once more to see it resume."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForImageTextToText, Qwen2VLForConditionalGeneration

from support.commands import run_job
from vlsi_cache import open_cache
from vlsi_cache.demo.plan import FULL, QUICK, Demo
from vlsi_cache.demo.run import run_demo
from vlsi_cache.errors import StageError

COMMAND = Path(sys.executable).with_name("vlsi-cache")


def _demo(out: Path, *flags: str) -> tuple[dict[str, Any], str]:
    done = run_job(COMMAND, "demo", "--quick", "--json", "--out", out, *flags, check=True)
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
    gain = summary["accuracy"]["distilled"] - summary["accuracy"]["finetuned"]
    assert summary["gain"] == pytest.approx(gain)
    assert summary["gain_interval"][0] <= gain <= summary["gain_interval"][1]
    assert summary["seconds"] > 0
    assert summary["cpu_seconds"] > 0


def test_the_demos_accuracy_is_that_of_the_evaluate_command(
    demo: tuple[Path, dict[str, Any]],
) -> None:
    out, summary = demo
    questions = out / "data" / "questions.jsonl"
    flags = ["--limit", str(QUICK.questions), "--generate", "4", "--batch-size", "128", "--json"]
    command = [COMMAND, "evaluate", out / "student", "--data", questions, *flags]
    shown = run_job(*command, check=True)
    found = json.loads(shown.stdout)
    assert found["accuracy"] == summary["accuracy"]["distilled"]
    assert found["num_samples"] == summary["num_questions"] == QUICK.questions


def test_students_have_hurried_answers_alone_and_the_rival_does_not_read_the_cache(
    demo: tuple[Path, dict[str, Any]],
) -> None:
    out, _ = demo
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert Path(recipe["data"]["path"]).name == "hurried.jsonl"
    settings = json.loads((out / "finetuned-only" / "finetuning" / "stage.json").read_text())
    rival = settings["settings"]["finetuning"]
    assert "record_weight" not in rival  # as where it is 0
    assert rival["steps"] == QUICK.student_steps
    distilled = json.loads((out / "finetuning" / "stage.json").read_text())
    assert distilled["settings"]["finetuning"]["record_weight"] > 1


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
    assert statistics["bytes_per_token_tap"] == summary["bytes_per_token_tap"]
    assert open_cache(Path(summary["paths"]["cache"])).num_tokens == statistics["num_tokens"]
    assert "<img" in Path(summary["paths"]["page"]).read_text()  # samples with their images


def test_a_rerun_goes_on_where_the_demo_stopped_and_adds_a_pair_of_students(
    demo: tuple[Path, dict[str, Any]],
) -> None:
    out, summary = demo
    weights = out / "student" / "model.safetensors"
    trained = out / "from-scratch" / "teacher" / "model" / "model.safetensors"
    teacher = trained.stat().st_mtime_ns
    expected = weights.read_bytes()
    # as if the demo had been stopped while the last stage of the student ran
    shutil.rmtree(out / "student")
    shutil.rmtree(out / "finetuning")
    again, log = _demo(out, "--pairs", "2")
    assert weights.read_bytes() == expected
    assert trained.stat().st_mtime_ns == teacher
    assert log.count("interaction  step 3 of 3") == 1  # that of the second pair
    assert again["divergence_nats"] == summary["divergence_nats"]
    assert again["seconds"] > summary["seconds"]
    first, second = again["pairs"]
    assert first == summary["pairs"][0]
    assert second["seed"] == 1
    assert second["finetuned_nats"] != first["finetuned_nats"]
    assert (out / "pair-1" / "student" / "model.safetensors").read_bytes() != expected
    assert not (out / "pair-1" / "cache").exists()


@pytest.mark.parametrize("other", [Demo(Path(), FULL), Demo(Path(), QUICK, seed=1)])
def test_another_size_or_seed_does_not_go_on_in_the_same_folder(
    demo: tuple[Path, dict[str, Any]], other: Demo
) -> None:
    with pytest.raises(StageError, match="another size or seed"):
        run_demo(replace(other, out=demo[0]))
