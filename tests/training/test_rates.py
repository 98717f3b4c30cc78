"""Default learning rates: the rule, the warm-up, and the guard that notices a rising loss."""

from __future__ import annotations

import logging
import random
import re
import signal
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from support.runs import changed, make_recipe
from vlsi_cache import dump_teacher, train_student
from vlsi_cache.errors import StageError
from vlsi_cache.interruption import Interrupted, ask_to_stop
from vlsi_cache.recipe import Schedule, recipe_from_mapping
from vlsi_cache.training import StageModule
from vlsi_cache.training.advice import folders_to_delete
from vlsi_cache.training.loop.guarding.guard import LossGuard, find_rise
from vlsi_cache.training.loop.rates import (
    adapter_rate,
    finetuning_rate,
    first_step_rate,
    fresh_rate,
    rate_factor,
    samples_per_step,
)


def test_a_model_of_ten_times_the_weights_trains_at_a_fifth_of_the_rate() -> None:
    """By Step Law: 10 ** -0.713 is 0.194."""
    assert finetuning_rate(10**10, 8) == pytest.approx(0.194 * finetuning_rate(10**9, 8), rel=2e-3)


def test_twice_the_width_halves_the_rates_of_adapters_and_verbalizers() -> None:
    assert adapter_rate(1152, 1.0, 8) == pytest.approx(adapter_rate(576, 1.0, 8) / 2)
    assert fresh_rate(1152, 8) == pytest.approx(fresh_rate(576, 8) / 2)


def test_adapters_that_count_twice_train_at_half_the_rate() -> None:
    assert adapter_rate(576, 2.0, 8) == pytest.approx(adapter_rate(576, 1.0, 8) / 2)


def test_four_times_the_batch_doubles_the_rate_up_to_the_largest_batch() -> None:
    assert finetuning_rate(10**9, 32) == pytest.approx(2 * finetuning_rate(10**9, 8))
    assert finetuning_rate(10**9, 1024) == finetuning_rate(10**9, 128)


def test_a_step_holds_the_samples_of_all_its_micro_batches() -> None:
    assert samples_per_step(Schedule(batch_size=4, gradient_accumulation=16)) == 64


def test_the_warm_up_rises_from_above_zero_and_the_cosine_ends_at_the_last_rate() -> None:
    factors = [rate_factor(step, warmup=3, steps=10, final=0.01) for step in range(11)]
    assert factors[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert factors[3:] == sorted(factors[3:], reverse=True)
    assert factors[10] == pytest.approx(0.01)


@pytest.mark.parametrize(
    "losses",
    [
        [1.76, 2.3, 2.5, 2.2, 2.4, 2.3, 2.5, 2.4, 2.3, 2.4],
        [2.0] * 2 + [3.0] * 30,
        [1.0 + 0.1 * step for step in range(40)],
        [6.7, 53.0, 111.0, 162.0, 153.0, 117.0, 79.0, 134.0] + [100.0, 60.0] * 8 + [40.0, 50.0] * 3,
        [-0.5] * 3 + [0.5, 0.4] * 10,
    ],
)
def test_a_loss_that_stays_above_its_first_value_is_found(losses: list[float]) -> None:
    found = find_rise(losses, losses, len(losses))
    assert found is not None
    assert found.first < found.last


@pytest.mark.parametrize("count", [1, 3, 4, 8, 200])
def test_a_noisy_loss_that_falls_is_no_rise(count: int) -> None:
    noise = random.Random(count)
    falling = [3.0 * 0.9**step + noise.gauss(0, 0.05) for step in range(count)]
    assert find_rise(falling, falling, count) is None


@pytest.mark.parametrize("losses", [[1.76, 2.3, 2.5, 2.2], [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]])
def test_a_handful_of_steps_gives_no_verdict(losses: list[float]) -> None:
    assert find_rise(losses, losses, len(losses)) is None


def test_a_loss_that_stays_as_it_is_seldom_looks_risen() -> None:
    """The guard looks at every step, and each look may be wrong."""
    noise, wrong = random.Random(0), 0
    for _ in range(200):
        flat = [noise.gauss(2, 0.3) for _ in range(50)]
        wrong += any(find_rise(flat[:count], flat[:count], count) for count in range(1, 51))
    assert wrong < 20


def test_the_guard_adds_the_micro_batches_of_a_step() -> None:
    guard = LossGuard()
    for parts in [(0.5, 0.5)] * 3 + [(1.5, 1.5), (1.6, 1.0, 0.4), (3.0,)] * 3:
        for part in parts:
            guard.add(torch.tensor(part))
        guard.end_step()
    guard.add(torch.tensor(9.0))
    problem = guard.find_problem()
    assert problem == "loss stays above its first value: 1 at step 1, 3 is the mean of the last 5"


def test_the_guard_sees_a_rise_that_a_falling_weight_would_hide() -> None:
    guard = LossGuard()
    for step in range(200):
        taps = torch.tensor(3.0 * max(0.0, 1 - step / 60))
        guard.add(torch.tensor(2.5 + step / 100) + taps)
        guard.add_falling(taps)
        guard.end_step()
    problem = guard.find_problem()
    assert problem is not None
    assert problem.startswith("loss stays above its first value: 2.5 at step 1, 4.395 is the mean")


def test_the_guard_keeps_as_much_of_a_long_run_as_of_a_short_one() -> None:
    guard = LossGuard()
    for step in range(3000):
        guard.add(torch.tensor(1.0 if step < 300 else 2.0))
        guard.end_step()
    assert guard.find_problem() is not None
    assert len(guard._first) == len(guard._last) == 100
    slow = [2.0 - 0.3 * (step < 10) + 0.1 * (-1) ** step for step in range(100)]
    found = find_rise(slow, slow, len(slow))
    assert found is not None
    assert found.text() == "1.7 is the mean of the first 10 steps, 2 is the mean of the last 10"


def test_a_guard_that_goes_on_knows_the_first_value() -> None:
    whole, resumed = LossGuard(), LossGuard()
    for step in range(300):
        if step == 150:
            resumed.resume(whole.written())
        for guard in (whole, resumed):
            guard.add(torch.tensor(1.0 if step < 50 else 2.0 + 1e-3 * step))
            guard.end_step()
    assert whole.find_problem() == resumed.find_problem() is not None
    assert torch.equal(whole.written(), resumed.written())


class _Scale(StageModule):
    """A weight whose loss is the mean of the samples times it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1e-4))

    def forward(self, labels: Tensor, num_items_in_batch: int) -> dict[str, Tensor]:
        return {"loss": self.weight * labels.sum() / num_items_in_batch}


def _first_step_rate(samples: list[float], batch_size: int) -> float:
    module = _Scale()

    def collate(indices: list[int]) -> dict[str, Any]:
        return {"labels": torch.tensor([samples[index] for index in indices])}

    indices, schedule = np.arange(len(samples)), Schedule(batch_size=batch_size)
    parameters = module.parameters()
    return first_step_rate(module, parameters, collate, indices, schedule, autocast=False)


def test_no_rate_is_made_up_where_no_sample_has_a_finite_loss() -> None:
    with pytest.raises(StageError, match=r"no learning rate can be measured.*student\.dtype"):
        _first_step_rate([float("nan")] * 3, batch_size=2)


def test_a_step_of_one_bad_sample_leaves_the_rate_to_the_others() -> None:
    # the loss by its gradient is the weight
    assert _first_step_rate([float("nan"), 1.0, 2.0], batch_size=1) == 1e-4


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Any:
    recipe = make_recipe(tmp_path_factory.mktemp("rates"))
    dump_teacher(recipe)
    return recipe


def test_a_student_that_grows_worse_is_reported_at_the_end_of_the_command(
    dumped: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rates = {"steps": 12, "learning_rate": 3.0, "final_learning_rate": 3.0}
    section = dumped.finetuning.model_copy(update=rates)
    recipe = dumped.model_copy(
        update={"finetuning": section, "stages": ["finetuning"], "output": tmp_path / "run"}
    )
    with caplog.at_level(logging.WARNING, logger="vlsi_cache"):
        train_student(recipe)
    assert "finetuning: loss stays above its first value" in caplog.records[-1].getMessage()
    assert "learning_rate below 3" in caplog.records[-1].getMessage()
    assert f"Delete {tmp_path / 'run' / 'finetuning'}, then" in caplog.records[-1].getMessage()


def test_the_advice_names_the_folders_of_the_stages_that_build_on_it(tmp_path: Path) -> None:
    (tmp_path / "interaction").mkdir()
    recipe = recipe_from_mapping({"output": str(tmp_path)}, where="test")

    def named(role: Literal["teacher", "student"], stage: str, **changes: Any) -> list[str]:
        found = folders_to_delete(changed(recipe, **changes), role, stage, tmp_path / "own")
        return found.replace(f"{tmp_path}/", "").replace(" and ", ", ").split(", ")

    assert named("student", "finetuning") == ["finetuning"]
    assert named("student", "interaction") == ["interaction", "finetuning"]
    whole = ["student-verbalizers", "interaction", "finetuning"]
    assert named("student", "verbalization") == whole
    assert named("student", "verbalization", stages=["verbalization"]) == whole[:2]
    assert named("teacher", "verbalization") == ["teacher-verbalizers", "cache", "interaction"]
    assert named("student", "pretraining") == ["own"]


def test_a_run_that_was_interrupted_still_compares_with_its_first_step(
    dumped: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
            if state.global_step == 4:
                ask_to_stop(signal.SIGTERM, "here")

    rates = {"steps": 12, "learning_rate": 3.0, "final_learning_rate": 3.0}
    section = dumped.finetuning.model_copy(update=rates)
    said = []
    for name in ("unbroken", "interrupted"):
        recipe = dumped.model_copy(
            update={"finetuning": section, "stages": ["finetuning"], "output": tmp_path / name}
        )
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="vlsi_cache"):
            if name == "interrupted":
                with pytest.raises(Interrupted):
                    train_student(recipe, callbacks=[Stop()])
            train_student(recipe)
        said.append(caplog.records[-1].getMessage().partition(". ")[0])
    assert said[0] == said[1]
    assert "finetuning: loss stays above its first value" in said[0]


def test_verbalizers_train_at_a_rate_of_their_own_in_interaction(
    dumped: Any, tmp_path: Path
) -> None:
    from transformers import TrainerCallback

    seen: list[tuple[float, set[str]]] = []

    class Rates(TrainerCallback):
        def on_step_end(self, args, state, control, model, optimizer, **kwargs):  # type: ignore[no-untyped-def]
            names = {id(value): name for name, value in model.named_parameters()}
            for group in optimizer.param_groups:
                owners = {names[id(value)].split(".")[0] for value in group["params"]}
                seen.append((group["initial_lr"], owners))

    section = dumped.interaction.model_copy(
        update={"steps": 1, "learning_rate": None, "verbalizer_learning_rate": None}
    )
    recipe = dumped.model_copy(
        update={
            "interaction": section,
            "stages": ["verbalization", "interaction"],
            "output": tmp_path / "run",
            "cache": dumped.cache.model_copy(update={"path": dumped.cache_path}),
        }
    )
    train_student(recipe, callbacks=[Rates()])
    width = 32
    assert {owner for _, owners in seen for owner in owners} == {"adapted", "bank"}
    for rate, owners in seen:
        expected = 0.1 * fresh_rate(width, 4) if owners == {"bank"} else adapter_rate(width, 1.0, 4)
        assert rate == pytest.approx(expected)


def test_fine_tuning_begins_at_the_loss_by_the_norm_of_its_gradient(
    dumped: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The plain form of the rule, from transformers' own loss of one step of all samples."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from vlsi_cache.data import BatchEncoder, load_data

    model: Any = AutoModelForCausalLM.from_pretrained(dumped.student.model)
    tokenizer: Any = AutoTokenizer.from_pretrained(dumped.student.model)
    data = load_data(dumped.data)
    encoded = BatchEncoder(tokenizer, max_length=None)([data[index] for index in range(len(data))])
    mask = encoded.pop("response_mask")
    logits = model(**encoded).logits[:, :-1, : len(tokenizer)]
    labels = encoded["input_ids"][:, 1:]
    loss = torch.nn.functional.cross_entropy(logits[mask[:, 1:]], labels[mask[:, 1:]])
    loss.backward()
    norm = sum(p.grad.abs().sum().item() for p in model.model.layers.parameters())
    section = dumped.finetuning.model_copy(
        update={"steps": 1, "batch_size": 5, "gradient_accumulation": 3, "learning_rate": None}
    )
    section = section.model_copy(update={"final_learning_rate": None})
    recipe = dumped.model_copy(
        update={"finetuning": section, "stages": ["finetuning"], "output": tmp_path / "run"}
    )
    with caplog.at_level(logging.INFO, logger="vlsi_cache"):
        train_student(recipe)
    found = re.search(r"step 1 of 1  .*learning_rate (\S+)", caplog.text)
    assert found is not None
    assert float(found[1]) == pytest.approx(min(loss.item() / norm, 1e-3), rel=0.05)
