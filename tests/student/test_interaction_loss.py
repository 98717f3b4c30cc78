"""The loss of stage two by itself: matching by samples, draws, and metrics under autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from vlsi_cache.models import Backbone, bind_decoder, run_backbone
from vlsi_cache.objectives import SparseTargets
from vlsi_cache.recipe import InteractionSection, VerbalizerSection
from vlsi_cache.student.interaction import RestingVerbalizers
from vlsi_cache.student.interaction_loss import Interaction
from vlsi_cache.verbalizer import build_verbalizers

VOCAB, TEACHER_TAPS = 97, (3, 9, 27, 62, 77)


def _interaction(matching: dict[str, Any], *, rank: int = 0, **settings: Any) -> Interaction:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        initializer_range=0.4,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    student = Backbone("tiny", None, bind_decoder(model), VOCAB, "")
    bank = build_verbalizers(student.decoder, (0, 2), VerbalizerSection(), seed=0)
    section = InteractionSection.model_validate(
        {"matching": matching, "lora": {"rank": 2}, **settings}
    )
    return Interaction(student, bank, section, teacher_taps=TEACHER_TAPS, seed=0, rank=rank)


def _batch(counts: list[int], length: int = 12) -> dict[str, Any]:
    """Samples with so many response tokens each, at their ends."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(VOCAB, (len(counts), length), generator=generator)
    samples = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    places = torch.cat([torch.arange(length - count, length) for count in counts])
    shape = (len(samples), len(TEACHER_TAPS) + 1, 6)
    # each tap has words of its own, so that taps differ in their distance
    chosen = torch.randint(VOCAB // 8, shape, generator=generator)
    chosen += torch.arange(shape[1])[:, None] * (VOCAB // 8)
    return {
        "inputs": {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        "positions": samples * length + places - 1,
        "labels": ids[samples, places],
        "token_samples": samples,
        "targets": SparseTargets(
            chosen,
            torch.full(shape, 1 / shape[-1]),
            torch.rand(shape[:2], generator=generator),
        ),
    }


def _only(batch: dict[str, Any], sample: int) -> dict[str, Any]:
    """One sample of a batch, as a batch."""
    mine = batch["token_samples"] == sample
    length = batch["inputs"]["input_ids"].shape[1]
    alone: dict[str, Any] = {
        "inputs": {name: value[sample : sample + 1] for name, value in batch["inputs"].items()}
    }
    for name, value in batch.items():
        if isinstance(value, Tensor):
            alone[name] = value[mine]
    alone["targets"] = SparseTargets(*(value[mine] for value in batch["targets"]))
    alone["positions"] = alone["positions"] - sample * length
    alone["token_samples"] = torch.zeros_like(alone["token_samples"])
    return alone


def _means(module: Interaction) -> dict[str, Tensor]:
    return {name: total / count for name, (total, count) in module.collect().items()}


@pytest.mark.parametrize("strategy", ["bottom-1", "expected", "shortest"])
def test_samples_are_matched_as_each_is_alone(strategy: str) -> None:
    module = _interaction({"strategy": strategy, "granularity": "sample"})
    counts = [3, 5, 2]
    batch = _batch(counts)
    together = module(**batch)["loss"] * 10
    alone = [module(**_only(batch, sample))["loss"] * count for sample, count in enumerate(counts)]
    torch.testing.assert_close(together, torch.stack(alone).sum())
    one_path = _interaction({"strategy": strategy, "granularity": "batch"})(**batch)["loss"] * 10
    assert not torch.isclose(together, one_path)  # so samples do differ in their matches


def test_draws_follow_from_batch_and_process() -> None:
    batch = _batch([4, 4])

    def shares(module: Interaction) -> list[Tensor]:
        found = []
        for _ in range(12):
            module(**batch)
            found.append(_means(module)["share"])
        return found

    first, again, other = (shares(_interaction({}, rank=rank)) for rank in (0, 0, 1))
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not all(torch.equal(*pair) for pair in zip(first, other, strict=True))
    assert len({tuple(share.flatten().tolist()) for share in first}) > 1
    resumed = _interaction({}, rank=0)
    resumed.batches_seen = 7
    resumed(**batch)
    assert torch.equal(_means(resumed)["share"], first[7])


def test_the_loss_is_the_outputs_and_the_weighted_taps() -> None:
    batch = _batch([4, 4])

    def loss(**settings: Any) -> Tensor:
        found: Tensor = _interaction({"strategy": "uniform"}, **settings)(**batch)["loss"]
        return found

    output, taps = loss(inner="none"), loss(output="none", inner_weight=1.0)
    torch.testing.assert_close(loss(inner_weight=1.0), output + taps)
    torch.testing.assert_close(loss(inner_weight=0.25), output + 0.25 * taps)
    torch.testing.assert_close(loss(), output + 0.5 * taps)  # two taps share the first weight


def test_metrics_are_exact_under_autocast() -> None:
    module, batch = _interaction({"strategy": "uniform"}), _batch([4, 4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(40):  # whole numbers above 256 have no room in bfloat16
            module(**batch)
    metrics = _means(module)
    assert metrics["match_tap_0"].item() == 9.0  # the 2nd and the 5th of the teacher's five taps
    assert metrics["match_tap_2"].item() == 77.0
    assert metrics["kl_output"].dtype == torch.float32


def _metrics(module: Interaction) -> dict[str, float]:
    return {
        name: float(total) / count
        for name, (total, count) in module.collect().items()
        if total.ndim == 0
    }


def _taps(means: dict[str, float]) -> float:
    return sum(value for name, value in means.items() if name.startswith("kl_tap"))


@pytest.mark.parametrize(
    ("settings", "progress", "weight"),
    [
        ({}, 0.0, 0.5),
        ({}, 0.15, 0.25),
        ({}, 0.3, 0.0),
        ({"inner_weight": 0.25}, 0.5, 0.25),
        ({"inner_weight_of": "all"}, 0.5, 0.125),
        ({"inner_schedule": {"until": 0.4}}, 0.0, 0.25),
        ({"inner_schedule": {"until": 0.4}}, 0.1, 0.1875),
        ({"inner_schedule": {"until": 0.4, "end": 0.2}}, 0.9, 0.05),
        ({"inner_schedule": {"until": 0.4}}, 0.4, 0.0),
    ],
)
def test_the_taps_weight_follows_its_settings(
    settings: dict[str, Any], progress: float, weight: float
) -> None:
    module = _interaction({"strategy": "uniform"}, **settings)
    module.progress = progress
    loss = float(module(**_batch([4, 3]))["loss"].detach())
    means = _metrics(module)
    taps = module.falling
    assert (taps is None) == (module.settings.inner_schedule is None or not weight)
    assert taps is None or float(taps) == pytest.approx(weight * _taps(means) / loss, rel=1e-5)
    assert ("kl_tap_0" in means) == (weight > 0)
    assert loss == pytest.approx(means["kl_output"] + weight * _taps(means), rel=1e-5)


def test_taps_may_learn_the_output_without_being_matched() -> None:
    module = _interaction({}, inner_target="output")
    batch = _batch([4, 3])
    module(**batch)
    means = _metrics(module)
    assert not any(name.startswith("match") for name in means)
    states, _ = run_backbone(module.decoder, (0, 2), batch["inputs"], batch["positions"])
    read = module.decoder.features(module.bank(states, batch["positions"])[2])
    log_q = module.decoder.head.logits(read).log_softmax(-1).detach()
    wanted, weights, entropy = (value[:, -1] for value in batch["targets"])
    expected = (-(weights * log_q.gather(1, wanted)).sum(1) - entropy).mean()
    assert means["kl_tap_2"] == pytest.approx(float(expected), rel=1e-4)


def test_the_output_may_learn_from_a_tap_or_a_mixture() -> None:
    losses = {}
    batch = _batch([4, 3])
    for name, target in (
        ("output", None),
        ("tap", {"tap": 27}),
        ("mixture", {"tap": 27, "share": 0.25}),
    ):
        module = _interaction({}, inner="none", output_target=target)
        losses[name] = float(module(**batch)["loss"].detach())
    moved = batch["targets"].candidates(torch.tensor([0, 1, 2, 3, 4, 2]))
    module = _interaction({}, inner="none")
    assert losses["tap"] == pytest.approx(
        float(module(**{**batch, "targets": moved})["loss"].detach()), rel=1e-5
    )
    mixed = 0.25 * losses["tap"] + 0.75 * losses["output"]
    assert losses["mixture"] == pytest.approx(mixed, rel=1e-5)


def test_gradients_of_taps_and_output_are_compared(caplog: pytest.LogCaptureFixture) -> None:
    """Where a tap is the output itself and learns the same, both gradients are one."""
    module = _interaction({}, gradients_every=2, inner_target="output", inner_weight=0.5)
    for module.step in (0, 0, 1, 2):
        module(**_batch([4, 3]))["loss"].backward()
    found = module.collect()
    assert found["gradient_cosine"][1] == 2  # at the first passes of the first and the third step
    assert -1 <= float(found["gradient_cosine"][0]) / 2 <= 1
    assert float(found["gradient_output"][0]) > 0
    assert float(found["gradient_taps"][0]) > 0
    plain = _interaction({}, inner_target="output", inner_weight=0.5)
    for _ in range(4):
        plain(**_batch([4, 3]))["loss"].backward()
    for measured, other in zip(module.parameters(), plain.parameters(), strict=True):
        assert (measured.grad is None) == (other.grad is None)
        if measured.grad is not None:
            torch.testing.assert_close(measured.grad, other.grad)
    assert "gradient_cosine" not in plain.collect()


def test_gradients_that_oppose_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    module = _interaction({}, gradients_every=1)
    for _ in range(2):
        module.observe("gradient_cosine", torch.tensor(-0.5))
        module.collect()
    assert caplog.text.count("opposes the output's (cosine -0.50)") == 1


def test_the_weight_of_a_schedule_is_a_metric_and_verbalizers_rest_where_it_is_0() -> None:
    module = _interaction({}, inner_schedule={"until": 0.5, "end": 0.0})
    batch, metrics = _batch([4, 4]), []
    for module.progress in (0.0, 0.25, 0.5):
        module(**batch)
        metrics.append(_metrics(module)["inner_weight"])
    assert metrics == pytest.approx([0.25, 0.125, 0.0])
    assert "inner_weight" not in _metrics(_interaction({}))
    resting = RestingVerbalizers(module)
    optimizer = torch.optim.AdamW(module.bank.parameters(), lr=1e-2)
    moved = []
    for module.progress in (0.25, 1.0):
        before = [value.detach().clone() for value in module.bank.parameters()]
        for value in module.bank.parameters():  # as several processes have them
            value.grad = torch.ones_like(value) * module.inner_weight()
        resting.on_pre_optimizer_step(None, None, None)
        optimizer.step()
        pairs = zip(before, module.bank.parameters(), strict=True)
        moved.append(not all(torch.equal(*pair) for pair in pairs))
    assert moved == [True, False], "AdamW's momentum alone moves nothing"


@pytest.mark.parametrize(
    ("settings", "decides"),
    [
        ({}, False),
        ({"batch_tokens": 100}, True),
        ({"batch_tokens": 100, "matching": {"granularity": "sample"}}, False),
        ({"batch_tokens": 100, "inner": "ce"}, False),
        ({"batch_tokens": 100, "inner": "none"}, False),
    ],
)
def test_a_bound_on_a_pass_is_part_of_the_stage_where_its_samples_share_a_matching(
    settings: dict[str, Any], decides: bool
) -> None:
    one = InteractionSection.model_validate(settings)
    other = one.model_copy(update={"batch_tokens": one.batch_tokens and one.batch_tokens // 2})
    assert one.bound_decides == decides
    assert (one.decisive() != other.decisive()) == decides
