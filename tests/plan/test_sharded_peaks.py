"""The memory planned for a student that FSDP shards is what real processes take, within 15 %."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from support.processors import text_tokenizer
from support.ranks import RankServer
from vlsi_cache import dump_teacher
from vlsi_cache.plan import Machines, PlannedStage, plan_run
from vlsi_cache.recipe import Recipe, recipe_from_mapping

ENVIRONMENT = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "HF_DEACTIVATE_ASYNC_LOAD": "1",  # a thread's allocations are not counted
}
STAGES = {
    "student-verbalization": "verbalization",
    "interaction": "interaction",
    "finetuning": "finetuning",
}


def _save(folder: Path, hidden_size: int, vocab_size: int) -> str:
    tokenizer = text_tokenizer("chatml")
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=3,
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
    """A student whose embedding and head are half of it. They are gathered for the whole step."""
    folder = tmp_path_factory.mktemp("run")
    turns = [("user", "what is it " * 4), ("assistant", "the red one " * 16)]
    messages = [{"role": role, "content": said} for role, said in turns]
    rows = [json.dumps({"id": f"s{index}", "messages": messages}) for index in range(12)]
    (folder / "data.jsonl").write_text("\n".join(rows), encoding="utf-8")
    schedule = {"steps": 2, "batch_size": 4, "learning_rate": 1e-4, "warmup_steps": 0}
    schedule["workers"] = 0
    made = recipe_from_mapping(
        {
            "teacher": {
                "model": _save(folder / "teacher", 64, 8000),
                "taps": [0, 1, 2],
                "verbalization": schedule,
            },
            "student": {
                "model": _save(folder / "student", 384, 8000),
                "taps": [0, 2],
                "verbalization": schedule,
            },
            "data": {"path": str(folder / "data.jsonl")},
            "cache": {"path": str(folder / "cache")},
            "interaction": {**schedule, "lora": {"rank": 4}},
            "finetuning": schedule,
            "output": str(folder / "out"),
            "device": "cpu",
        },
        where="test",
    )
    dump_teacher(made)
    return made


def _measured(
    server: RankServer, recipe: Recipe, folder: Path, num_ranks: int
) -> dict[str, list[int]]:
    """Return what each process of each stage allocates at most, by the stage's name."""
    found, stages = {}, []
    for name, stage in STAGES.items():
        stages.append(stage)
        raw: dict[str, Any] = json.loads(recipe.model_dump_json())
        raw |= {"output": str(folder), "stages": stages}
        codes = server.run(folder, num_ranks, recipe=raw, measured=True, env=ENVIRONMENT)
        assert codes == [0] * num_ranks
        found[name] = [int((folder / f"peak-{rank}.txt").read_text()) for rank in range(num_ranks)]
    return found


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_every_process_allocates_what_was_planned(
    server: RankServer, recipe: Recipe, tmp_path: Path, num_ranks: int
) -> None:
    planned: dict[str, PlannedStage] = {
        stage.name: stage
        for stage in plan_run(recipe, Machines(devices=num_ranks, fsdp=True)).stages
    }
    for name, peaks in _measured(server, recipe, tmp_path, num_ranks).items():
        stage = planned[name]
        # the first process also loads the student, and puts the whole together at the end
        assert stage.device_bytes == pytest.approx(max(peaks[1:]), rel=0.15), name
        assert stage.host_bytes == pytest.approx(sum(peaks), rel=0.15), name
