"""The loss of stage two by itself: matching by samples, draws, and metrics under autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from vlsi_cache.models import Backbone, bind_decoder
from vlsi_cache.objectives import SparseTargets
from vlsi_cache.recipe import InteractionSection, VerbalizerSection
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
    torch.testing.assert_close(loss(), output + 0.25 * taps)


def test_metrics_are_exact_under_autocast() -> None:
    module, batch = _interaction({"strategy": "uniform"}), _batch([4, 4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(40):  # whole numbers above 256 have no room in bfloat16
            module(**batch)
    metrics = _means(module)
    assert metrics["match_tap_0"].item() == 9.0  # the 2nd and the 5th of the teacher's five taps
    assert metrics["match_tap_2"].item() == 77.0
    assert metrics["kl_output"].dtype == torch.float32
