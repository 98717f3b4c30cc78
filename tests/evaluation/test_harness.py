"""Another harness reads a finished student, with nothing of this project in its environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from support.runs import changed, make_recipe
from vlsi_cache.student import train_student

HARNESS = Path(sys.prefix) / "harness"
CHOICES = [" one", " two", " a third"]


def _write_task(folder: Path) -> list[str]:
    """Write a task of a local file, and return its questions."""
    questions = [f"question {number}: how many?" for number in range(5)]
    rows = [{"question": question, "choices": CHOICES, "gold": 1} for question in questions]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    task = {
        "task": "counting",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "target_delimiter": "",
    }
    (folder / "counting.yaml").write_text(yaml.safe_dump(task), "utf-8")
    return questions


def _log_likelihood(student: Path, question: str, choice: str) -> float:
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(student)
    asked, whole = (tokenizer(text)["input_ids"] for text in (question, question + choice))
    with torch.no_grad():
        log_probs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(float(log_probs[at - 1, whole[at]]) for at in range(len(asked), len(whole)))


def test_lm_eval_scores_a_student_as_plain_transformers_does(tmp_path: Path) -> None:
    if not HARNESS.is_dir():
        pytest.skip(f"lm_eval is not in {HARNESS}, where make installs it")
    recipe = changed(make_recipe(tmp_path, num_samples=8), stages=["finetuning"])
    student = train_student(recipe)
    task = tmp_path / "task"
    task.mkdir()
    questions = _write_task(task)
    command = [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--tasks", "counting"),
        *("--model_args", f"pretrained={student},dtype=float32", "--include_path", str(task)),
        *("--device", "cpu", "--batch_size", "2", "--log_samples", "--output_path", str(task)),
    ]
    environment = {"PYTHONPATH": str(HARNESS), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (log,) = task.rglob("samples_counting_*.jsonl")
    samples = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    assert [sample["doc"]["question"] for sample in samples] == questions
    for sample in samples:
        found = [float(response[0][0]) for response in sample["resps"]]
        question = sample["doc"]["question"]
        expected = [_log_likelihood(student, question, choice) for choice in CHOICES]
        assert found == pytest.approx(expected, rel=1e-4)
