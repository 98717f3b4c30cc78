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

SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
COUNTED = {"HF_DEACTIVATE_ASYNC_LOAD": "1"}
"""Reads weights by one thread: what others allocate is not counted."""
TALLY_BYTES = 2**22
"""What an encoder counts in, whatever the model. A plan leaves it out."""
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
        num_hidden_layers=4,
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
    """A student whose embedding and head are a fifth of it, gathered for the whole step."""
    folder = tmp_path_factory.mktemp("run")
    turns = [("user", "what is it " * 4), ("assistant", "the red one " * 16)]
    messages = [{"role": role, "content": said} for role, said in turns]
    rows = [
        json.dumps({"id": f"s{index}", "messages": messages}) for index in range(24)
    ]  # full batches of two processes, and of three
    (folder / "data.jsonl").write_text("\n".join(rows), encoding="utf-8")
    schedule = {"steps": 2, "batch_size": 4, "learning_rate": 1e-4, "warmup_steps": 0}
    schedule["workers"] = 0
    made = recipe_from_mapping(
        {
            "teacher": {
                "model": _save(folder / "teacher", 64, 3000),
                "taps": [0, 1, 2],
                "verbalization": schedule,
            },
            "student": {
                "model": _save(folder / "student", 384, 3000),
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


def _measured(server: RankServer, recipe: Recipe, num_ranks: int, env: dict[str, str]) -> list[int]:
    """Return what each process allocates at most while it trains what the recipe names."""
    raw: dict[str, Any] = json.loads(recipe.model_dump_json())
    codes = server.run(recipe.output, num_ranks, recipe=raw, measured=True, env=COUNTED | env)
    assert codes == [0] * num_ranks
    paths = [recipe.output / f"peak-{rank}.txt" for rank in range(num_ranks)]
    return [int(path.read_text(encoding="utf-8")) - TALLY_BYTES for path in paths]


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_every_process_allocates_what_was_planned(
    server: RankServer, recipe: Recipe, tmp_path: Path, num_ranks: int
) -> None:
    planned: dict[str, PlannedStage] = {
        stage.name: stage
        for stage in plan_run(recipe, Machines(devices=num_ranks, fsdp=True)).stages
    }
    stages: list[Any] = []
    for name, stage_name in STAGES.items():
        stages.append(stage_name)
        run = recipe.model_copy(update={"output": tmp_path, "stages": [*stages]})
        peaks, stage = _measured(server, run, num_ranks, SHARDED), planned[name]
        # the first process also loads the student, and puts the whole together at the end
        assert stage.device_bytes == pytest.approx(max(peaks[1:]), rel=0.15), name
        assert stage.host_bytes == pytest.approx(sum(peaks), rel=0.15), name


def test_what_processes_send_one_another_first_is_planned(
    server: RankServer, recipe: Recipe, tmp_path: Path
) -> None:
    """Each holds the whole student, and DDP copies all of it before there is any gradient."""
    settings = recipe.interaction.model_copy(update={"batch_size": 1, "inner": "none"})
    run = recipe.model_copy(
        update={"output": tmp_path, "stages": ["interaction"], "interaction": settings}
    )
    planned = {stage.name: stage for stage in plan_run(run, Machines(devices=2)).stages}
    stage = planned["interaction"]
    assert stage.working_bytes > 0.7 * stage.weights_bytes
    for peak in _measured(server, run, 2, {}):
        assert stage.device_bytes == pytest.approx(peak, rel=0.15)
