"""What a launcher's environment asks for: had, or refused in one line before anything is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from support.runs import make_recipe
from vlsi_cache.errors import RecipeError
from vlsi_cache.recipe import Recipe, recipe_from_mapping
from vlsi_cache.training.launch import asked_sharding, validate_launch, validate_precision

CPU = torch.device("cpu")
EXAMPLE = Path(__file__).parents[2] / "examples" / "fsdp.yaml"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"LOCAL_RANK": "0"}, "half a launcher's"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "half a launcher's"),
        ({"LOCAL_RANK": "0", "RANK": "0"}, "half a launcher's"),
        # what accelerate launch --cpu --num_processes 2 sets, and starts one process
        (
            {
                "ACCELERATE_MIXED_PRECISION": "no",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": "29500",
            },
            "several processes, and has started one.*torchrun",
        ),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true"},
            "DeepSpeed is asked for, and is not supported.*FSDP2",
        ),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM .* not supported"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "parallelism_config .* not supported"),
    ],
)
def test_what_cannot_be_had_is_one_line(
    given: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match=message) as caught:
        validate_launch()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        {"WORLD_SIZE": "1"},
        {"ACCELERATE_MIXED_PRECISION": "no"},
        {"ACCELERATE_USE_DEEPSPEED": "false"},
        {"MASTER_ADDR": "10.0.0.1"},  # of a scheduler, without accelerate launch
    ],
)
def test_one_process_needs_no_launcher(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    validate_launch()


FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.mark.parametrize(
    ("role", "given", "message"),
    [
        ("teacher", FSDP2, "FSDP is for students"),
        ("student", {"ACCELERATE_USE_FSDP": "true"}, "version 1 .*expected fsdp_version: 2"),
        ("student", FSDP2 | {"FSDP_VERSION": "1"}, "version 1 is not supported"),
        ("student", FSDP2, "no launcher has started the processes"),
    ],
)
def test_sharding_that_cannot_be_had_is_refused(
    role: str, given: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match=message):
        asked_sharding(Recipe(), role, CPU)  # type: ignore[arg-type]


def test_nobody_asks_for_sharding() -> None:
    assert asked_sharding(Recipe(), "student", CPU) is None


@pytest.mark.parametrize(
    ("asked", "dtype", "refused"),
    [
        ("no", "auto", False),
        ("no", "bfloat16", False),
        ("bf16", "bfloat16", False),
        ("bf16", "auto", True),  # float32 on a CPU
        ("bf16", "float32", True),
        ("fp16", "bfloat16", True),
        ("fp8", "bfloat16", True),
    ],
)
def test_another_precision_than_the_recipes_is_refused(
    asked: str, dtype: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    recipe = recipe_from_mapping({"student": {"dtype": dtype}}, where="test")
    if not refused:
        validate_precision(recipe, "student", CPU)
        return
    with pytest.raises(RecipeError, match=rf"in {asked}, and the recipe is not.*mixed_precision"):
        validate_precision(recipe, "student", CPU)


def _launch(recipe: Recipe, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    file = folder / "recipe.yaml"
    raw = yaml.safe_load(recipe.model_dump_json())
    file.write_text(yaml.safe_dump(raw | {"device": "auto"}), encoding="utf-8")
    command = ["-m", "vlsi_cache.cli", "train-student", "--recipe", str(file)]
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *options, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_the_example_for_accelerate_shards_a_student(tmp_path: Path) -> None:
    """No GPU is needed, and the processes join all the same."""
    recipe = make_recipe(tmp_path, num_samples=4).model_copy(update={"stages": ["finetuning"]})
    done = _launch(recipe, tmp_path, "--config_file", str(EXAMPLE))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 processes on cpu" in done.stdout
    assert "FSDP2: 2 processes share the student's weights" in done.stdout
    assert (recipe.student_path / "model.safetensors").is_file()
