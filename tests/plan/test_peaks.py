"""The memory that a plan foretells is what every stage of a real run allocates, within 15 %."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from support.peaks import peak_bytes
from support.processors import text_tokenizer
from vlsi_cache import dump_teacher, train_student
from vlsi_cache.models import load_backbone
from vlsi_cache.plan import Machines, Plan, plan_run
from vlsi_cache.plan.progress import is_finished, num_recorded, opened_cache, stages_of
from vlsi_cache.recipe import Recipe, recipe_from_mapping
from vlsi_cache.training import begin_run
from vlsi_cache.verbalizer import obtain_verbalizers

BATCH = 4
HIDDEN = 384


def _save(folder: Path, num_blocks: int) -> str:
    """A model in bfloat16: its float32 copy is allocated, and not mapped from the file."""
    tokenizer = text_tokenizer("chatml")
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 5,
        hidden_size=HIDDEN,
        intermediate_size=1152,
        num_hidden_layers=num_blocks,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("run")
    turns = [("user", "what is it " * 4), ("assistant", "the red one " * 16)]
    messages = [{"role": role, "content": said} for role, said in turns]
    rows = [json.dumps({"id": f"s{index}", "messages": messages}) for index in range(8)]
    (folder / "data.jsonl").write_text("\n".join(rows), encoding="utf-8")
    schedule = {"steps": 2, "batch_size": BATCH, "learning_rate": 1e-4, "warmup_steps": 0}
    return recipe_from_mapping(
        {
            "teacher": {
                "model": _save(folder / "teacher", 4),
                "taps": [1, 3],
                "verbalization": schedule,
            },
            "student": {
                "model": _save(folder / "student", 3),
                "taps": [0, 2],
                "verbalization": schedule,
            },
            "data": {"path": str(folder / "data.jsonl")},
            "cache": {"batch_size": BATCH, "hidden": {}},
            "interaction": {**schedule, "lora": {"rank": 4}, "hidden": {}},
            "finetuning": schedule,
            "output": str(folder / "out"),
            "device": "cpu",
        },
        where="test",
    )


@pytest.fixture(scope="module")
def plan(recipe: Recipe) -> Plan:
    return plan_run(recipe, Machines(operations_per_second=1e9))


@pytest.fixture(scope="module")
def peaks(recipe: Recipe, plan: Plan) -> dict[str, int]:
    """What each stage of a real run allocates, by its name."""

    def verbalize() -> None:
        run = begin_run(recipe, "teacher")
        teacher = load_backbone(recipe.teacher, "teacher", run.device)
        obtain_verbalizers(run, recipe.teacher, teacher, recipe.teacher_verbalizers_path)

    def train(*stages: Any) -> int:
        return peak_bytes(lambda: train_student(recipe.model_copy(update={"stages": [*stages]})))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")
        return {
            "teacher-verbalization": peak_bytes(verbalize),
            "teacher-pass": peak_bytes(lambda: dump_teacher(recipe)),
            "student-verbalization": train("verbalization"),
            "interaction": train("verbalization", "interaction"),
            "finetuning": train("verbalization", "interaction", "finetuning"),
        }


def test_every_stage_allocates_what_was_planned(plan: Plan, peaks: dict[str, int]) -> None:
    planned = {stage.name: stage.device_bytes for stage in plan.stages}
    assert planned.keys() == peaks.keys()
    ratios = {name: planned[name] / peaks[name] for name in planned}
    assert all(0.85 < ratio < 1.15 for ratio in ratios.values()), ratios


def test_the_parts_of_a_stage_make_up_its_memory(plan: Plan) -> None:
    for stage in plan.stages:
        training = stage.gradients_bytes + stage.optimizer_bytes
        parts = stage.weights_bytes + stage.added_bytes + training + stage.working_bytes
        assert parts == stage.device_bytes
        # a gradient and AdamW's two means, in float32
        assert stage.gradients_bytes == 4 * stage.trained_parameters
        assert stage.optimizer_bytes == 8 * stage.trained_parameters


def test_a_whole_run_is_planned_in_order_with_its_verbalizers(plan: Plan) -> None:
    assert [stage.name for stage in plan.stages] == [
        "teacher-verbalization",
        "teacher-pass",
        "student-verbalization",
        "interaction",
        "finetuning",
    ]
    # three D × D maps at each tap, and one more for the closed form
    assert plan.verbalizer_parameters.teacher == 2 * 4 * HIDDEN**2
    assert plan.verbalizer_parameters.student == 2 * 4 * HIDDEN**2
    for stage in plan.stages:
        assert not stage.done
        assert stage.fits
        assert stage.seconds == pytest.approx(stage.operations / 1e9)


def test_the_stages_of_a_finished_run_are_done(recipe: Recipe, peaks: dict[str, int]) -> None:
    cache = opened_cache(recipe)
    assert all(is_finished(recipe, stage, cache) for stage in stages_of(recipe))
    assert num_recorded(cache) == 8
    elsewhere = recipe.model_copy(update={"output": recipe.output / "elsewhere"})
    assert not any(is_finished(elsewhere, stage, None) for stage in stages_of(elsewhere))
