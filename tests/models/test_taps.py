"""Taps: which blocks, and a capture under gradients, adapters and checkpointing."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from transformers import Cache

from support.families import IMAGE_TOKEN_ID, tiny_model
from support.features import final_features
from vlsi_cache.errors import ModelError
from vlsi_cache.models import (
    bind_decoder,
    capture_taps,
    default_taps,
    lora_config,
    resolve_taps,
)

# peft asks for a property that transformers has renamed.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

TOKENS = torch.arange(3, 15).view(2, 6)


def test_default_taps_are_those_of_the_paper() -> None:
    assert default_taps(28) == (2, 6, 10, 14, 18, 22, 26)
    assert default_taps(80)[-1] == 78
    assert len(default_taps(80)) == 20


@pytest.mark.parametrize(("num_blocks", "taps"), [(1, (0,)), (2, (1,)), (3, (2,)), (6, (2,))])
def test_every_depth_has_a_default_tap(num_blocks: int, taps: tuple[int, ...]) -> None:
    assert default_taps(num_blocks) == taps


def test_taps_are_sorted_and_unique() -> None:
    assert resolve_taps([3, 1, 3], 4, where="taps") == (1, 3)
    assert resolve_taps(None, 8, where="taps") == (2, 6)


def test_all_taps_out_of_range_are_named_at_once() -> None:
    with pytest.raises(ModelError, match=r"student\.taps: .*0 to 3; found -1, 4, 9"):
        resolve_taps([9, 2, 4, -1], 4, where="student.taps")


def test_an_empty_list_of_taps_is_refused() -> None:
    with pytest.raises(ModelError, match="no taps are given"):
        resolve_taps([], 4, where="taps")


def test_features_before_any_pass_are_refused() -> None:
    with (
        capture_taps(bind_decoder(tiny_model("llama")), [0]) as capture,
        pytest.raises(ModelError, match="not known yet"),
    ):
        _ = capture.features


def test_hooks_are_gone_after_the_context_even_after_an_error() -> None:
    decoder = bind_decoder(tiny_model("llama"))
    with pytest.raises(ZeroDivisionError), capture_taps(decoder, [0, 2]):
        raise ZeroDivisionError
    assert not any(
        part._forward_hooks or part._forward_pre_hooks for part in decoder.model.modules()
    )


def test_a_capture_holds_the_latest_pass() -> None:
    decoder = bind_decoder(tiny_model("llama"))
    with torch.no_grad(), capture_taps(decoder, [1]) as capture:
        final_features(decoder, {"input_ids": TOKENS})
        first = capture.states[1].hidden
        final_features(decoder, {"input_ids": TOKENS[:1] + 20})
        assert capture.states[1].hidden.shape[0] == 1
        assert first.shape[0] == 2


def test_states_hold_no_key_value_cache() -> None:
    for family in ("llama", "gpt2", "mamba"):
        decoder = bind_decoder(tiny_model(family))
        with torch.no_grad(), capture_taps(decoder, [1]) as capture:
            decoder.model(input_ids=TOKENS, use_cache=True)
        state = capture.states[1]
        values = [*state.args, *state.kwargs.values()]
        assert not any(isinstance(value, Cache) for value in values), family
        assert not state.kwargs.get("use_cache"), family


def test_gradients_flow_from_a_tap_to_the_blocks_before_it_only() -> None:
    decoder = bind_decoder(tiny_model("qwen3"))
    with capture_taps(decoder, [1]) as capture:
        final_features(decoder, {"input_ids": TOKENS})
    capture.states[1].hidden.square().sum().backward()
    moved = [
        any(weight.grad is not None for weight in block.parameters()) for block in decoder.blocks
    ]
    assert moved == [True, True, False, False]


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_changes_neither_states_nor_gradients(*, use_reentrant: bool) -> None:
    model = tiny_model("llama")
    plain = _adapter_gradients(copy.deepcopy(model))
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    if use_reentrant:
        model.enable_input_require_grads()
    checkpointed = _adapter_gradients(model)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient)


def _adapter_gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Gradients of a loss over two taps and the output, from adapters injected after binding."""
    decoder = bind_decoder(model)
    adapted = peft.get_peft_model(model, lora_config(decoder, rank=2, alpha=2))
    generator = torch.Generator().manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.1
    adapted.train()
    with capture_taps(decoder, [0, 2]) as capture:
        adapted(input_ids=TOKENS, use_cache=False)
        loss = decoder.head.logits(capture.features).square().mean()
        for state in capture.states.values():
            loss = loss + decoder.features(state.hidden).square().mean()
        loss.backward()
        assert set(capture.states) == {0, 2}
    return {
        name: weight.grad
        for name, weight in adapted.named_parameters()
        if weight.grad is not None and "lora_" in name
    }


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_features_are_the_models_own_when_there_is_an_image(family: str) -> None:
    # Qwen3-VL adds visual features between its first blocks, which must be there too.
    decoder = bind_decoder(tiny_model(family))
    row = [3, 4, 152, *[IMAGE_TOKEN_ID] * 4, 153, 5, 6]
    inputs = {
        "input_ids": torch.tensor([row]),
        "mm_token_type_ids": torch.tensor([[int(token == IMAGE_TOKEN_ID) for token in row]]),
        "pixel_values": torch.randn(16, 3 * 2 * 8 * 8, generator=torch.Generator().manual_seed(0)),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }
    with torch.no_grad():
        logits = decoder.model(**inputs).logits
        rebuilt = decoder.head.logits(final_features(decoder, inputs))
        blind = decoder.model(**inputs | {"pixel_values": inputs["pixel_values"] * 0}).logits
    torch.testing.assert_close(rebuilt, logits)
    assert not torch.allclose(logits, blind)
