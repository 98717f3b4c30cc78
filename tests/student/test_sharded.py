"""A student whose weights are sharded over processes, on real gloo: it is one process's."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from support.families import tiny_model
from support.ranks import RankServer, errors
from support.runs import make_recipe, poison
from vlsi_cache.recipe import Recipe
from vlsi_cache.teacher import dump_teacher

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
RESULTS = (
    "student-verbalizers/verbalizers.safetensors",
    "interaction/model/model.safetensors",
    "student/model.safetensors",
)
# all samples are in each step, and each matches for itself: any number of processes does the same
MATCHING = {"strategy": "expected", "granularity": "sample"}


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("sharded")
    interaction = {"matching": MATCHING, "save_every": 1, "steps": 2, "hidden": {}}
    finetuning = {"learning_rate": 1e-3, "save_every": 1}
    stages = {"interaction": interaction, "finetuning": finetuning}
    recipe = make_recipe(folder, num_samples=4, cache={"hidden": {}}, **stages)
    dump_teacher(recipe)
    return recipe


def _raw(recipe: Recipe, output: Path, **changes: Any) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(recipe.model_dump_json())
    raw["cache"]["path"] = str(recipe.cache_path)
    raw["output"] = str(output)
    for schedule in (raw["student"]["verbalization"], raw["interaction"], raw["finetuning"]):
        schedule["workers"] = 0
    for section, change in changes.items():
        raw[section] |= change
    return raw


def _run(
    server: RankServer, raw: dict[str, Any], num_ranks: int, env: dict[str, str], **task: Any
) -> list[int]:
    output = Path(raw["output"])
    output.mkdir(exist_ok=True)
    return server.run(output, num_ranks, recipe=raw, env=env, **task)


def _compare(one: Path, other: Path) -> None:
    """Compare all weights. Adam turns a rounding of a small gradient into a part of its rate."""
    tolerance = 2e-4  # the rates are up to 1e-2
    for name in RESULTS:
        expected, found = load_file(one / name), load_file(other / name)
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            assert found[key].dtype == value.dtype
            torch.testing.assert_close(
                found[key], value, rtol=tolerance, atol=tolerance, msg=lambda m, k=key: f"{k}: {m}"
            )


def _metric(stage: Path, name: str) -> list[float]:
    events = EventAccumulator(str(stage / "tensorboard")).Reload()
    return [event.value for event in events.Scalars(f"train/{name}")]


@pytest.fixture(scope="module")
def alone(server: RankServer, dumped: Recipe) -> Path:
    """What one process makes."""
    raw = _raw(dumped, dumped.output.with_name("alone"))
    assert _run(server, raw, 1, {}) == [0]
    return Path(raw["output"])


def test_a_sharded_student_is_one_processs_and_goes_on_with_any_number(
    server: RankServer, dumped: Recipe, alone: Path, tmp_path: Path
) -> None:
    raw = _raw(dumped, tmp_path / "run")
    dies = [-signal.SIGKILL]
    raw["student"]["verbalization"]["save_every"] = 1
    assert _run(server, raw, 3, FSDP, kill_after_steps=2) == dies * 3  # in stage one
    assert _run(server, raw, 2, FSDP, kill=["interaction", 1]) == dies * 2
    assert _run(server, raw, 3, FSDP, kill=["finetuning", 1]) == dies * 3
    assert _run(server, raw, 2, {}, kill=["finetuning", 2]) == dies * 2  # each holds all weights
    assert _run(server, raw, 2, FSDP) == [0, 0]
    _compare(alone, Path(raw["output"]))
    assert not list(Path(raw["output"]).rglob("checkpoint-*"))
    # the taps' weight has fallen to 0 at the second step: nobody computes them
    assert len(_metric(Path(raw["output"]) / "interaction", "kl_tap_0")) == 1
    assert _metric(Path(raw["output"]) / "interaction", "inner_weight")[-1] == 0


def test_towers_ties_scalars_and_measured_rates_are_one_processs(
    server: RankServer, tmp_path: Path
) -> None:
    """Blocks that train themselves, verbalizers that copy them, activations computed twice."""
    again = {"gradient_checkpointing": True}
    recipe = make_recipe(
        tmp_path,
        images=True,
        num_samples=4,
        interaction={"matching": MATCHING, "lora": None, "learning_rate": 1e-4, **again},
        finetuning={"learning_rate": None, "final_learning_rate": None, **again},
    )
    dump_teacher(recipe)
    structure = {"verbalizer": {**recipe.student.verbalizer.model_dump(), "structure": "decoder"}}
    one, many = (
        _raw(recipe, tmp_path / name, student=structure | {"taps": [0]}) for name in ("one", "many")
    )
    assert _run(server, one, 1, {}) == [0]
    assert _run(server, many, 2, FSDP | {"FSDP_RESHARD_AFTER_FORWARD": "false"}) == [0, 0]
    _compare(Path(one["output"]), Path(many["output"]))
    # Adam's steps do not show how large its gradients are
    for stage in ("student-verbalizers", "interaction", "finetuning"):
        for name in ("loss", "grad_norm"):
            expected, found = (_metric(Path(raw["output"]) / stage, name) for raw in (one, many))
            assert found == pytest.approx(expected, rel=1e-3), (stage, name)


def test_a_sample_that_is_not_finite_is_left_out_of_its_step_by_all_processes(
    server: RankServer, tmp_path: Path
) -> None:
    """Its gradient would reach every slice of every weight."""
    recipe = make_recipe(tmp_path, num_samples=6, finetuning={"max_grad_norm": 0.0})
    path = Path(str(recipe.data.path))
    rows = path.read_text("utf-8").splitlines()
    rows[2] = rows[2].replace("What", "Q")
    path.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    poison(Path(str(recipe.student.model)))
    for name, num_ranks, env in (("one", 1, {}), ("sharded", 2, FSDP)):
        schedule = {"steps": 2, "batch_size": 6 // num_ranks}
        raw = _raw(recipe, tmp_path / name, finetuning=schedule)
        raw |= {"stages": ["finetuning"], "data": {**raw["data"], "on_error": "skip"}}
        assert _run(server, raw, num_ranks, env) == [0] * num_ranks
    one, other = (
        load_file(tmp_path / name / "student" / "model.safetensors") for name in ("one", "sharded")
    )
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=2e-4, atol=2e-4, equal_nan=True)
        assert value.isfinite().all() or "embed_tokens" in key


def _load(server: RankServer, recipe: Recipe, folder: Path, **task: Any) -> list[int]:
    """Load and shard the student by three processes; read by one thread, so that it is counted."""
    raw = json.loads(recipe.model_dump_json())
    return server.run(folder, 3, load=raw, env={"HF_DEACTIVATE_ASYNC_LOAD": "1"}, **task)


def test_one_process_holds_the_whole_student_and_the_others_their_slices(
    server: RankServer, tmp_path: Path
) -> None:
    recipe = make_recipe(tmp_path, num_samples=2)
    student = Path(str(recipe.student.model))
    model = tiny_model("llama", num_layers=12, changes={"hidden_size": 128})
    model.to(torch.bfloat16).save_pretrained(student)  # it trains in float32, in twice the bytes
    parts = {
        name: sum(value.numel() for value in part.parameters()) * 4
        for name, part in (("whole", model), ("block", model.get_submodule("model.layers.0")))
    }
    assert _load(server, recipe, tmp_path) == [0] * 3
    first, *others = (int((tmp_path / f"peak-{rank}.txt").read_text()) for rank in range(3))
    assert first >= parts["whole"]
    for found in others:
        rest = parts["whole"] - 12 * parts["block"]  # what lies outside the blocks comes together
        assert parts["whole"] / 3 <= found
        assert found <= 1.1 * (parts["whole"] / 3 + max(parts["block"], rest))


def test_what_the_reading_process_finds_wrong_ends_all_of_them(
    server: RankServer, tmp_path: Path
) -> None:
    recipe = make_recipe(tmp_path, num_samples=2)
    weights = Path(str(recipe.student.model)) / "model.safetensors"
    lost = {name: torch.full_like(one, torch.nan) for name, one in load_file(weights).items()}
    save_file(lost, weights, metadata={"format": "pt"})
    assert _load(server, recipe, tmp_path) == [1] * 3
    first, *others = errors(tmp_path, 3)
    assert "hidden states are not finite; expected finite numbers" in first
    for found in others:
        assert "the main process stopped: hidden states are not finite" in found


def test_processes_that_hold_different_weights_end_with_the_same_line(
    server: RankServer, tmp_path: Path
) -> None:
    assert _load(server, make_recipe(tmp_path, num_samples=2), tmp_path, odd=1) == [1] * 3
    (found,) = set(errors(tmp_path, 3))
    assert found.startswith("Finetuning: processes 0 and 1 hold different weights; found further.")


def test_micro_batches_and_the_best_weights_are_one_processs(
    server: RankServer, tmp_path: Path
) -> None:
    recipe = make_recipe(tmp_path, num_samples=16)
    data = Path(str(recipe.data.path))
    other = data.read_text("utf-8").replace("What is", "Which one is").replace("The ", "What 1 2 ")
    held_out = tmp_path / "held-out.jsonl"
    held_out.write_text("\n".join(other.splitlines()[:5]) + "\n", encoding="utf-8")
    rates = {"learning_rate": 3e-2, "final_learning_rate": 3e-2}
    found = {}
    for number, env in ((1, {}), (2, FSDP)):
        size = {"batch_size": 8 // number, "gradient_accumulation": 2}
        raw = _raw(recipe, tmp_path / f"run-{number}", finetuning={"steps": 8, **size, **rates})
        raw |= {"stages": ["finetuning"]}
        raw["held_out"] |= {"path": str(held_out), "every": 1, "keep": "best"}
        assert _run(server, raw, number, env) == [0] * number, errors(Path(raw["output"]))
        found[number] = Path(raw["output"])
    lines = (found[1] / "finetuning" / "held-out.jsonl").read_text("utf-8").splitlines()
    losses = [json.loads(line)["held_out_loss_nats"] for line in lines]
    assert min(losses) < losses[-1], "the best weights are the last ones"
    one, other_student = (
        load_file(folder / "student" / "model.safetensors") for folder in found.values()
    )
    for key, value in one.items():
        torch.testing.assert_close(other_student[key], value, rtol=1e-3, atol=1e-3)
