"""A hidden state that a student of another hidden size learns, by a map that trains with it."""

from __future__ import annotations

import json
import logging
import math
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, TrainerCallback

from support.commands import run_job
from support.ranks import RankServer
from support.runs import changed, make_recipe, save_text_model
from vlsi_cache.data import IndexedConversations, encoder_for, load_data
from vlsi_cache.errors import CacheMismatchError
from vlsi_cache.hidden import HiddenSigns
from vlsi_cache.models import Backbone, TapState, load_backbone
from vlsi_cache.plan import plan_run
from vlsi_cache.recipe import Recipe
from vlsi_cache.store import open_cache
from vlsi_cache.student import train_student
from vlsi_cache.student.cached import CachedBatches
from vlsi_cache.student.hidden_state import HiddenTarget, hidden_target, num_start_tokens, start_map
from vlsi_cache.student.interaction_loss import Interaction
from vlsi_cache.teacher import dump_teacher
from vlsi_cache.training import StageModule
from vlsi_cache.training.samples.first_batches import FirstBatches
from vlsi_cache.verbalizer import build_verbalizers

CPU = torch.device("cpu")
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
NARROW = {"hidden_size": 24}
"""The student's hidden size. The teacher's is 32."""
BEGINS = "the hidden state's map begins at the closed form"


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("hidden-map")
    # all samples are in each step, and each matches for itself: any number of processes is alike
    matching = {"strategy": "expected", "granularity": "sample"}
    interaction = {"hidden": {}, "matching": matching, "steps": 4, "save_every": 1}
    recipe = make_recipe(folder, num_samples=4, cache={"hidden": {}}, interaction=interaction)
    save_text_model(Path(str(recipe.student.model)), num_layers=4, seed=2, changes=NARROW)
    dump_teacher(recipe)
    cache = {"path": str(recipe.cache_path)}
    return changed(recipe, cache=cache, stages=["verbalization", "interaction"])


def _student(recipe: Recipe) -> tuple[Backbone, Interaction]:
    """The student and the module of stage two, without taps."""
    student = load_backbone(recipe.student, "student", CPU)
    cache = open_cache(recipe.cache_path)
    bank = build_verbalizers(student.decoder, (), recipe.student.verbalizer, seed=0)
    section = recipe.interaction.model_copy(update={"inner": "none"})
    module = Interaction(student, bank, section, teacher_taps=cache.manifest.taps[:-1], seed=0)
    module.hidden = hidden_target(cache, student.decoder, section)
    return student, module


def _collate(recipe: Recipe, student: Backbone) -> Any:
    samples = IndexedConversations(load_data(recipe.data))
    encoder, cache = encoder_for(student, recipe.data), open_cache(recipe.cache_path)
    batches = CachedBatches(encoder, cache, "sample", with_hidden=True)
    return lambda indices: batches([samples[index] for index in indices])


def test_states_of_one_size_are_compared_as_they_are() -> None:
    signs = HiddenSigns(32, 32, seed=4)
    target = HiddenTarget(1, signs, 1.0)
    assert not list(target.parameters())
    assert not target.state_dict()
    states = torch.randn(50, 32).bfloat16()
    rows = torch.arange(50)
    recorded = {"hidden_signs": signs.encode(states, rows), "rotations": rows}
    with torch.autocast("cpu", torch.bfloat16):
        found = target.cosines(states, recorded)
    directions = signs.decode(recorded["hidden_signs"], rows)
    wanted = (F.normalize(states.float(), dim=-1) * directions).sum(-1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_a_map_works_in_float32_under_autocast() -> None:
    target = HiddenTarget(1, HiddenSigns(32, 32, seed=4), 1.0, mapped_from=24)
    assert target.map is not None
    torch.testing.assert_close(target.map.weight.detach(), torch.eye(32, 24))
    torch.nn.init.normal_(target.map.weight)
    states = torch.randn(50, 24).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = target.directions(states)
    wanted = F.normalize(F.normalize(states.float(), dim=-1) @ target.map.weight.T, dim=-1)
    torch.testing.assert_close(found, wanted)


class _Reader(StageModule):
    """A student whose states are given."""

    def __init__(self, target: HiddenTarget) -> None:
        super().__init__()
        self.hidden = target

    def read(
        self, taps: Sequence[int], inputs: Mapping[str, Tensor], positions: Tensor
    ) -> tuple[dict[int, TapState], Tensor]:
        del positions  # all of them are read
        state = TapState(inputs["states"], (), {})
        return dict.fromkeys(taps, state), inputs["states"]


@pytest.mark.parametrize(("wanted", "bits", "least"), [(48, 64, 0.98), (192, 64, 0.9)])
def test_states_that_are_a_linear_image_of_the_students_are_recovered(
    wanted: int, bits: int, least: float
) -> None:
    generator = torch.Generator().manual_seed(5)
    image = torch.randn(wanted, 16, generator=generator)
    states = torch.randn(3000, 16, generator=generator)
    signs = HiddenSigns(wanted, bits, seed=3)
    target = HiddenTarget(1, signs, 1.0, mapped_from=16)
    rows = torch.arange(len(states))
    recorded = signs.encode(states @ image.T, rows)

    def collate(indices: list[int]) -> dict[str, Any]:
        chosen = torch.tensor(indices)
        return {
            "inputs": {"states": states[chosen][:, None]},
            "positions": torch.arange(len(chosen)),
            "labels": chosen,
            "token_samples": torch.arange(len(chosen)),
            "hidden_signs": recorded[chosen],
            "rotations": rows[chosen],
        }

    start_map(_Reader(target), target, FirstBatches(collate, rows.numpy(), 20), autocast=False)
    fresh = torch.randn(200, 16, generator=generator)
    with torch.no_grad():
        cosine = F.cosine_similarity(target.directions(fresh), fresh @ image.T).mean()
    assert float(cosine) > least
    assert num_start_tokens(16, target) == 256 * max(1, wanted // bits)


def test_the_start_is_the_ridge_regression_of_all_tokens(dumped: Recipe) -> None:
    student, module = _student(dumped)
    target = module.hidden
    assert target is not None
    assert target.map is not None
    collate = _collate(dumped, student)
    start_map(module, target, FirstBatches(collate, np.arange(4), 3), autocast=False)
    batch = collate([0, 1, 2, 3])
    with torch.no_grad():
        states, _ = module.read((target.block,), batch["inputs"], batch["positions"])
        unit = F.normalize(states[target.block].at(batch["positions"]), dim=-1)
    asked = target.signs.decode(batch["hidden_signs"], batch["rotations"])
    penalty = math.sqrt(math.pi * 32 / target.signs.bits) * torch.eye(24)
    rows, asked = torch.cat([unit, penalty]), torch.cat([asked, torch.zeros(24, 32)])
    wanted = torch.linalg.lstsq(rows.double(), asked.double()).solution.T.float()
    torch.testing.assert_close(target.map.weight.detach(), wanted, rtol=1e-3, atol=1e-4)


def test_the_gradient_reaches_the_map_and_the_student(dumped: Recipe) -> None:
    student, module = _student(dumped)
    target = module.hidden
    assert target is not None
    batch = _collate(dumped, student)([0, 2])
    states, _ = module.read((target.block,), batch["inputs"], batch["positions"])
    cosines = target.cosines(states[target.block].at(batch["positions"]), batch)
    (1 - cosines).sum().backward()
    moved = {name for name, value in module.named_parameters() if _moves(value)}
    assert "hidden.map.weight" in moved
    assert any("lora_B" in name and ".layers.0." in name for name in moved)
    assert not any(".layers.3." in name for name in moved)  # block 1 learns


def _moves(value: Tensor) -> bool:
    return value.grad is not None and bool(value.grad.any())


class _Stop(TrainerCallback):
    """Ends a run in its third step, and keeps the rates of the parameters."""

    def __init__(self, last: int = 3) -> None:
        self.last = last
        self.rates: dict[str, float] = {}

    def on_step_end(  # type: ignore[override]
        self, args: Any, state: Any, control: Any, model: Any, optimizer: Any, **kwargs: Any
    ) -> None:
        if isinstance(model, Interaction):
            rates = {
                id(one): g["initial_lr"] for g in optimizer.param_groups for one in g["params"]
            }
            named = model.named_parameters()
            self.rates = {name: rates[id(one)] for name, one in named if id(one) in rates}
            if state.global_step == self.last:
                raise InterruptedError


def test_an_interrupted_run_ends_in_the_same_student(
    dumped: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vlsi_cache")
    interaction = {"verbalizer_learning_rate": 3e-3}
    unbroken, broken = (
        changed(dumped, output=str(tmp_path / name), interaction=interaction)
        for name in ("unbroken", "broken")
    )
    whole, stop = train_student(unbroken), _Stop()
    assert BEGINS in caplog.text
    with pytest.raises(InterruptedError):
        train_student(broken, (stop,))
    assert stop.rates["hidden.map.weight"] == 3e-3
    assert {rate for name, rate in stop.rates.items() if name.startswith("bank.")} == {3e-3}
    assert {rate for name, rate in stop.rates.items() if name.startswith("adapted.")} == {1e-2}
    checkpoint = tmp_path / "broken" / "interaction" / "checkpoint-2"
    assert load_file(checkpoint / "model.safetensors")["hidden.map.weight"].shape == (32, 24)
    caplog.clear()
    resumed = train_student(broken)
    assert BEGINS not in caplog.text
    weights = [load_file(folder / "model.safetensors") for folder in (whole, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    # an ordinary checkpoint: nothing of the map is in it, or beside it
    assert not any("map" in name or "hidden" in name for name in weights[0])
    model = AutoModelForCausalLM.from_pretrained(whole)
    assert model.config.hidden_size == 24
    assert (
        weights[0].keys() == load_file(Path(str(dumped.student.model)) / "model.safetensors").keys()
    )


def test_a_narrow_student_comes_nearer_by_the_command(dumped: Recipe, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    raw = json.loads(dumped.model_dump_json())
    raw["interaction"] |= {"steps": 12, "hidden": {"weight": 4.0}}
    recipe.write_text(json.dumps(raw | {"output": str(tmp_path / "run")}), encoding="utf-8")
    found = run_job("-m", "vlsi_cache.cli", "train-student", recipe)
    assert found.returncode == 0, found.stderr
    for words in (
        "block 1 of the student's 4 learns the hidden state of the teacher's block 5 of 8",
        "by a map of 24 to 32 numbers",
        BEGINS,
    ):
        assert words in found.stdout
    lines = (tmp_path / "run" / "interaction" / "metrics.jsonl").read_text().splitlines()
    cosines = [json.loads(line)["metrics"]["hidden_cosine"] for line in lines]
    assert cosines[0] > 0.1  # where it begins, without a step
    assert cosines[-1] > cosines[0] + 0.05


def test_sizes_that_differ_are_refused_without_a_map(dumped: Recipe, tmp_path: Path) -> None:
    recipe = changed(
        dumped, output=str(tmp_path / "run"), interaction={"hidden": {"map": "identity"}}
    )
    words = "expected the teacher's 32; found 24. Set interaction.hidden.map: learned"
    for command in (train_student, plan_run):
        with pytest.raises(CacheMismatchError, match=words):
            command(recipe)
    assert not (tmp_path / "run").exists()


def test_a_plan_counts_the_map(dumped: Recipe) -> None:
    with_map, without = (
        {
            stage.name: stage
            for stage in plan_run(changed(dumped, interaction={"hidden": one})).stages
        }
        for one in ({}, None)
    )
    first, second = with_map["interaction"], without["interaction"]
    assert first.trained_parameters == second.trained_parameters + 24 * 32
    assert first.added_bytes >= second.added_bytes + 4 * 24 * 32
    assert first.optimizer_bytes == second.optimizer_bytes + 8 * 24 * 32


def test_a_map_that_reads_nothing_is_warned_of(
    dumped: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    _, module = _student(dumped)
    target = module.hidden
    assert target is not None
    for cosine, warns in ((0.02, True), (0.01, False)):
        module.observe("hidden_cosine", torch.tensor(cosine))
        caplog.clear()
        module.collect()
        assert ("their mean cosine is 0.020. Name another block" in caplog.text) == warns
    assert target.find_advice(0.2) is None
    same = HiddenTarget(1, HiddenSigns(32, 32, 0), 1.0)
    assert "interaction.hidden.map: learned" in str(same.find_advice(-0.01))


def test_a_map_of_equal_sizes_is_there_if_asked_for(dumped: Recipe, tmp_path: Path) -> None:
    save_text_model(tmp_path / "equal", num_layers=4, seed=2)
    for asked, learned in ((None, False), ("identity", False), ("learned", True)):
        section = changed(
            dumped,
            student={"model": str(tmp_path / "equal")},
            interaction={"hidden": {"map": asked}},
        )
        _, module = _student(section)
        assert module.hidden is not None
        assert (module.hidden.map is not None) == learned
        hidden = section.interaction.decisive()["hidden"]
        assert isinstance(hidden, dict)
        assert ("map" in hidden) == learned  # runs of before have no such key


def test_processes_and_shards_give_one_processs_student(
    server: RankServer, dumped: Recipe, tmp_path: Path
) -> None:
    runs = []
    for name in ("one", "two", "sharded"):
        raw = json.loads(changed(dumped, output=str(tmp_path / name)).model_dump_json())
        for schedule in (raw["student"]["verbalization"], raw["interaction"]):
            schedule["workers"] = 0
        (tmp_path / name).mkdir()
        runs.append((tmp_path / name, raw))
    (one, alone), (two, together), (sharded, slices) = runs
    assert server.run(one, 1, recipe=alone, env={}) == [0]
    assert server.run(two, 2, recipe=together, env={}) == [0, 0]
    dies = [-signal.SIGKILL]
    task: dict[str, Any] = {"recipe": slices, "env": FSDP}
    assert server.run(sharded, 3, kill=["interaction", 1], **task) == dies * 3
    assert server.run(sharded, 2, kill=["interaction", 2], **task) == dies * 2
    assert server.run(sharded, 2, **task) == [0, 0]
    expected = load_file(one / "interaction" / "model" / "model.safetensors")
    for other in (two, sharded):
        found = load_file(other / "interaction" / "model" / "model.safetensors")
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=3e-4, atol=3e-4, msg=key)
