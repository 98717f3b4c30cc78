"""Adapters on experts, and what the log says that adapters reach."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from support.features import final_features
from support.shrinking import shrunken_config, shrunken_model
from vlsi_cache.errors import ModelError
from vlsi_cache.models import (
    Decoder,
    adapt,
    bind_decoder,
    expert_names,
    linear_names,
    lora_config,
    lora_reach,
)
from vlsi_cache.recipe import LoraSection

TOKENS = torch.arange(3, 21).view(2, 9)


def shrunken(model_type: str, *, sees_images: bool = False, **changes: Any) -> Decoder:
    config = shrunken_config(model_type, changes)
    return bind_decoder(shrunken_model(config, sees_images=sees_images))


# stored as (experts, out, in), as (experts, in, out), in modules of their own, beside a shared one
MIXTURES = ("qwen3_moe", "gpt_oss", "granitemoe", "deepseek_v3", "llama4_text", "mixtral")


@pytest.mark.parametrize("family", MIXTURES)
def test_adapters_reach_experts_learn_and_merge(family: str) -> None:
    decoder = shrunken(family)
    model = decoder.model.requires_grad_(False)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    adapted = adapt(decoder, LoraSection(rank=4, alpha=8), 0)
    experts = [name for name, _ in adapted.named_parameters() if "experts" in name or "moe" in name]
    assert any("lora_A" in name for name in experts)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    features = final_features(decoder, {"input_ids": TOKENS})
    decoder.head.logits(features).square().sum().backward()
    assert not [
        name
        for name, weight in adapted.named_parameters()
        if weight.requires_grad and (weight.grad is None or not weight.grad.any())
    ]
    with torch.no_grad():
        logits = model(input_ids=TOKENS, use_cache=False).logits
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(
            merged(input_ids=TOKENS, use_cache=False).logits, logits, atol=1e-4, rtol=1e-4
        )
    after = merged.state_dict()
    assert after.keys() == before.keys()
    names = [f"{name}.weight" for name in linear_names(decoder)] + expert_names(decoder)
    assert {name for name in after if not torch.equal(after[name], before[name])} == set(names)


def test_the_share_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="vlsi_cache"):
        adapt(shrunken("qwen3_moe"), LoraSection(rank=2), 0)
    assert "LoRA reaches 99% of the blocks' weights" in caplog.text


@pytest.mark.parametrize("changes", [{"experts": False}, {"experts": True, "dropout": 0.1}])
def test_experts_without_adapters_are_named(changes: dict[str, Any]) -> None:
    decoder = shrunken("qwen3_moe")
    reach = lora_reach(decoder, lora_config(decoder, rank=2, alpha=2, **changes))
    assert reach.share < 0.5
    assert list(reach.largest_missed) == [
        "Qwen3MoeExperts.gate_up_proj",
        "Qwen3MoeExperts.down_proj",
    ]
    assert "all but Qwen3MoeExperts.gate_up_proj (" in str(reach)


def test_the_share_counts_weights() -> None:
    decoder = shrunken("mamba")
    reach = lora_reach(decoder, lora_config(decoder, rank=2, alpha=2))
    sizes = {name: weight.numel() for name, weight in decoder.blocks.named_parameters()}
    adapted = sum(size for name, size in sizes.items() if name.endswith("in_proj.weight"))
    assert reach.share == adapted / sum(sizes.values())


def test_a_map_that_returns_a_tuple_gets_no_adapter() -> None:
    decoder = shrunken("llama4", sees_images=True)
    names = linear_names(decoder)
    assert names
    assert not [name for name in names if name.endswith("router")]
    adapt(decoder, LoraSection(rank=2), 0)


def test_a_map_with_a_forward_of_its_own_gets_one_if_it_is_the_product() -> None:
    decoder = shrunken("falcon")
    assert len(linear_names(decoder)) == 4 * decoder.num_blocks


def test_a_model_that_adapters_break_is_refused_in_one_line() -> None:
    decoder = shrunken("llama")

    def insist(part: torch.nn.Module, _: Any) -> None:
        assert isinstance(part.q_proj, torch.nn.Linear), "no wrapper here"

    for block in decoder.blocks:
        attention: Any = block.get_submodule("self_attn")
        attention.register_forward_pre_hook(insist)
    with pytest.raises(ModelError, match=r"failed; .*AssertionError: no wrapper here") as caught:
        adapt(decoder, LoraSection(rank=2), 0)
    assert "\n" not in str(caught.value)
