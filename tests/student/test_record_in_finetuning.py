"""Stage three goes on learning from the teacher's record, if it is asked to."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support.families import tiny_model
from support.runs import changed, make_recipe
from vlsi_cache.errors import CacheError, CacheMismatchError, RecipeError
from vlsi_cache.models import Backbone, bind_decoder, run_backbone
from vlsi_cache.objectives import SparseTargets
from vlsi_cache.recipe import FinetuningSection, Recipe
from vlsi_cache.student import train_student
from vlsi_cache.student.finetuning import Finetuning
from vlsi_cache.teacher import dump_teacher


def test_the_loss_is_cross_entropy_and_the_weighted_divergence() -> None:
    decoder = bind_decoder(tiny_model("llama").eval())
    backbone = Backbone("tiny", None, decoder, len(decoder.head.weight), "0" * 64)
    ids = torch.arange(14).view(2, 7) + 3
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    positions, labels = torch.tensor([2, 3, 4, 10]), torch.tensor([6, 7, 8, 14])
    probs = torch.rand(4, 3, 5).softmax(-1)
    targets = SparseTargets(torch.randint(40, (4, 3, 5)), probs, torch.rand(4, 3))
    module = Finetuning(backbone, FinetuningSection(record_weight=0.5))
    found = module(inputs, positions, labels, torch.zeros(4).long(), targets)["loss"]
    _, features = run_backbone(decoder, (), inputs, positions)
    log_q = decoder.head.logits(features).log_softmax(-1)
    log_q = log_q.detach()
    hard = -log_q.gather(1, labels[:, None])[:, 0]
    soft = -(probs[:, -1] * log_q.gather(1, targets.token_ids[:, -1])).sum(1)
    soft = soft - targets.entropy[:, -1]
    torch.testing.assert_close(found.detach(), (hard + 0.5 * soft).mean(), rtol=1e-5, atol=1e-5)
    observed = {name: float(total / count) for name, (total, count) in module.collect().items()}
    assert observed["cross_entropy"] == pytest.approx(float(hard.mean()), rel=1e-5)
    assert observed["kl_output"] == pytest.approx(float(soft.mean()), rel=1e-4)


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    recipe = make_recipe(tmp_path_factory.mktemp("record"))
    dump_teacher(recipe)
    return changed(recipe, cache={"path": str(recipe.cache_path)})


def test_it_runs_after_interaction_and_alone_and_says_both_losses(
    dumped: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = []
    for name, stages in (("all", dumped.stages), ("alone", ["finetuning"])):
        changes = {"record_weight": 1.0}
        recipe = changed(dumped, output=str(tmp_path / name), stages=stages, finetuning=changes)
        with caplog.at_level(logging.INFO, "vlsi_cache"):
            student = train_student(recipe)
        line = re.findall(r"finetuning  step 3 of 3 .*", caplog.text)[-1]
        assert "cross_entropy" in line
        assert "kl_output" in line
        weights.append(load_file(student / "model.safetensors"))
    plain = changed(dumped, output=str(tmp_path / "plain"), stages=["finetuning"])
    unlike = load_file(train_student(plain) / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(weights[1][name], unlike[name])


def test_a_cache_that_does_not_serve_is_refused(dumped: Recipe, tmp_path: Path) -> None:
    asks = {"record_weight": 1.0}
    alone = changed(dumped, output=str(tmp_path / "run"), stages=["finetuning"], finetuning=asks)
    with pytest.raises(CacheError, match="nowhere"):
        train_student(changed(alone, cache={"path": str(tmp_path / "nowhere")}))
    with pytest.raises(CacheMismatchError, match="other data"):
        train_student(changed(alone, data={"limit": 7}))
    with pytest.raises(RecipeError, match=r"finetuning\.record_weight.*tail: bucket"):
        changed(alone, interaction={"tail": "bucket"})
    assert not (tmp_path / "run" / "finetuning").exists()
