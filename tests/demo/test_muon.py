"""The optimizer of the training from scratch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from vlsi_cache.demo.muon import MuonWithAdamW, orthogonalized


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


@pytest.mark.parametrize("shape", [(6, 6), (3, 12, 5), (2, 5, 12)])
def test_orthogonalizing_keeps_the_directions_and_levels_their_sizes(
    shape: tuple[int, ...],
) -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(shape, generator=generator)
    matrices[..., 0] *= 100  # one direction drowns the others
    found = orthogonalized(matrices)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    sizes = (left.mT @ found @ right.mT).diagonal(dim1=-2, dim2=-1)
    assert found.shape == matrices.shape
    assert sizes.max() < 1.3
    assert (sizes > 0).all()
    assert sizes.mean() > 0.5


def test_steps_are_those_of_torch_but_for_bfloat16() -> None:
    """Torch's own Muon rounds to bfloat16, which has eight bits."""
    module = _module()
    other = copy.deepcopy(module)
    optimizer = MuonWithAdamW(module, learning_rate=1e-3)
    matrices = [one for one in other.parameters() if one.ndim == 2]
    rest = [one for one in other.parameters() if one.ndim != 2]
    muon = torch.optim.Muon(matrices, lr=2e-2, weight_decay=0.05, momentum=0.95)
    adam = torch.optim.AdamW(rest, lr=1e-3, weight_decay=0.0, betas=(0.9, 0.98))
    for seed in range(3):
        _step(module, optimizer, seed)
        inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
        other.zero_grad()
        other(inputs).square().mean().backward()
        muon.step()
        adam.step()
    for found, expected in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-3)
