"""Training from scratch, and its optimizer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlsi_cache.demo.dataset import DemoData
from vlsi_cache.demo.training import MuonWithAdamW, train_from_scratch
from vlsi_cache.errors import StageError


def _step(module: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    module(inputs).square().mean().backward()
    optimizer.step()


def _module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4, bias=False))


def test_matrices_within_the_model_go_to_muon_and_the_rest_to_adamw(
    untrained: tuple[Path, Path],
) -> None:
    model: Any = AutoModelForImageTextToText.from_pretrained(untrained[0])
    optimizer = MuonWithAdamW(model, learning_rate=1e-3)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    muon, adamw = ([names[id(one)] for one in group["params"]] for group in optimizer.param_groups)
    assert sorted(muon + adamw) == sorted(names.values())
    assert any(name.endswith("q_proj.weight") for name in muon)
    assert not any("embed" in name or "norm" in name or "bias" in name for name in muon)
    assert all(model.get_parameter(name).ndim == 2 for name in muon)


def test_a_restored_optimizer_goes_on_as_the_unbroken_one() -> None:
    module = _module()
    optimizer = MuonWithAdamW(module, learning_rate=1e-2)
    for seed in range(3):
        _step(module, optimizer, seed)
    resumed = copy.deepcopy(module)
    restored = MuonWithAdamW(resumed, learning_rate=1e-2)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in range(3, 6):
        _step(module, optimizer, seed)
        _step(resumed, restored, seed)
    for expected, found in zip(module.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_a_schedule_reaches_both_parts_of_the_optimizer() -> None:
    module = _module()
    before = copy.deepcopy(module)
    optimizer = MuonWithAdamW(module, learning_rate=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    _step(module, optimizer, 0)
    schedule.step()
    for expected, found in zip(before.parameters(), module.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_training_from_scratch_gives_an_ordinary_checkpoint_once(
    untrained: tuple[Path, Path], demo_data: DemoData, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"steps": 2, "batch_size": 2, "seed": 0}
    result = train_from_scratch(untrained[0], demo_data.train, tmp_path / "teacher", **settings)
    AutoModelForImageTextToText.from_pretrained(result)
    AutoProcessor.from_pretrained(result)
    weights = result / "model.safetensors"
    start, trained = load_file(untrained[0] / "model.safetensors"), load_file(weights)
    assert start.keys() == trained.keys()
    assert not any(torch.equal(trained[name], weight) for name, weight in start.items())
    assert not list((tmp_path / "teacher").glob("checkpoint-*"))

    written = weights.stat().st_mtime_ns
    again = train_from_scratch(untrained[0], demo_data.train, tmp_path / "teacher", **settings)
    assert again == result
    assert weights.stat().st_mtime_ns == written

    with pytest.raises(StageError, match="steps"):
        train_from_scratch(
            untrained[0], demo_data.train, tmp_path / "teacher", **{**settings, "steps": 3}
        )
