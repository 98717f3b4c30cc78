"""Every family can be bound, tapped, rerun and adapted, without a list of model names."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from torch import Tensor

from support.families import FAMILIES, IMAGE_FAMILIES, tiny_model
from support.features import final_features
from vlsi_cache.models import (
    Decoder,
    bind_decoder,
    capture_taps,
    linear_names,
    lora_config,
    text_config,
)

# peft asks for a property that transformers has renamed.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

TOKENS = torch.arange(3, 21).view(2, 9)


@pytest.fixture(scope="module", params=FAMILIES)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return bind_decoder(tiny_model(request.param))


def test_head_of_the_final_norm_of_the_last_block_gives_the_models_logits(decoder: Decoder) -> None:
    last = decoder.num_blocks - 1
    with torch.no_grad(), capture_taps(decoder, [last]) as capture:
        logits = decoder.model(input_ids=TOKENS, use_cache=False).logits
    rebuilt = decoder.head.logits(decoder.features(capture.states[last].hidden))
    torch.testing.assert_close(rebuilt, logits.to(rebuilt.dtype))
    torch.testing.assert_close(capture.features, decoder.features(capture.states[last].hidden))


def test_the_backbone_alone_gives_the_same_features_and_taps(decoder: Decoder) -> None:
    with torch.no_grad(), capture_taps(decoder, [1]) as capture:
        decoder.model(input_ids=TOKENS, use_cache=False)
        whole, tapped = capture.features, capture.states[1].hidden
        alone = final_features(decoder, {"input_ids": TOKENS})
        torch.testing.assert_close(alone, whole)
        torch.testing.assert_close(capture.states[1].hidden, tapped)


def test_a_copied_block_reruns_on_the_tap_before_it(decoder: Decoder) -> None:
    mask = torch.ones_like(TOKENS)
    mask[0, -3:] = 0
    layer_types = getattr(text_config(decoder.model), "layer_types", None)
    with torch.no_grad(), capture_taps(decoder, range(decoder.num_blocks)) as capture:
        # With the model's default key-value cache, which the states must not hold.
        decoder.model(input_ids=TOKENS, attention_mask=mask)
    reruns = 0
    for tap in range(decoder.num_blocks - 1):
        if layer_types is None or layer_types[tap] == layer_types[tap + 1]:
            block = copy.deepcopy(decoder.blocks[tap + 1])
            with torch.no_grad():
                again = capture.states[tap].rerun(block)
            torch.testing.assert_close(again, capture.states[tap + 1].hidden)
            reruns += 1
    assert reruns >= 2


def test_every_family_binds_in_bfloat16_too(decoder: Decoder) -> None:
    half = bind_decoder(copy.deepcopy(decoder.model).to(torch.bfloat16))
    assert half.head.transform == decoder.head.transform
    assert type(half.final_norm) is type(decoder.final_norm)


def test_adapters_on_the_blocks_learn_and_merge_without_a_trace() -> None:
    for family in FAMILIES:
        model = tiny_model(family)
        decoder = bind_decoder(model)
        before = {name: weight.shape for name, weight in model.named_parameters()}
        adapted = peft.get_peft_model(model, lora_config(decoder, rank=4, alpha=4))
        _randomize_adapters(adapted)
        _assert_all_adapters_learn(adapted, decoder, family)
        with torch.no_grad():
            logits = model(input_ids=TOKENS).logits
        merged = adapted.merge_and_unload()
        assert type(merged) is type(model), family
        assert {name: weight.shape for name, weight in merged.named_parameters()} == before
        with torch.no_grad():
            torch.testing.assert_close(
                merged(input_ids=TOKENS).logits, logits, atol=1e-4, rtol=1e-4
            )


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_adapters_never_touch_the_vision_tower_or_the_head(family: str) -> None:
    decoder = bind_decoder(tiny_model(family))
    inside = {id(part) for part in decoder.blocks.modules()}
    names = linear_names(decoder)
    # Query, key, value, output, and three maps of the gated feed-forward.
    assert len(names) == 7 * decoder.num_blocks
    assert all(id(decoder.model.get_submodule(name)) in inside for name in names)


def _randomize_adapters(adapted: torch.nn.Module) -> None:
    # The second factor starts at zero, and would hide a lost adapter.
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)


def _assert_all_adapters_learn(adapted: torch.nn.Module, decoder: Decoder, family: str) -> None:
    loss: Tensor = (
        decoder.head.logits(final_features(decoder, {"input_ids": TOKENS})).square().sum()
    )
    loss.backward()
    idle = [
        name
        for name, weight in adapted.named_parameters()
        if weight.requires_grad and (weight.grad is None or not weight.grad.any())
    ]
    assert not idle, f"{family}: {idle}"
