"""Binding: the parts that it finds, the models that it refuses, and that it changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    CohereForCausalLM,
    LlamaForCausalLM,
    LlamaModel,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from support.families import tiny_config, tiny_model
from vlsi_cache.errors import ModelError
from vlsi_cache.models import LogitTransform, bind_decoder


def test_binding_leaves_mode_gradients_and_random_state_alone() -> None:
    model = tiny_model("gpt2")  # drops out in training
    model.train()
    model.transformer.h[1].eval()
    modes = [part.training for part in model.modules()]
    torch.manual_seed(7)
    state = torch.get_rng_state()
    bind_decoder(model)
    assert [part.training for part in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize(
    ("family", "changes", "transform"),
    [
        ("llama", {}, LogitTransform()),
        ("gemma2", {"final_logit_softcapping": 30.0}, LogitTransform(softcap=30.0)),
        ("gemma2", {"final_logit_softcapping": None}, LogitTransform()),
        ("cohere", {"logit_scale": 0.25}, LogitTransform(scale=0.25)),
        ("granite", {"logits_scaling": 8.0}, LogitTransform(scale=0.125)),
        ("granite", {"logits_scaling": 1.0}, LogitTransform()),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_logit_transform_is_found(
    family: str, changes: dict[str, Any], transform: LogitTransform, dtype: torch.dtype
) -> None:
    model = tiny_model(family, changes=changes).to(dtype)
    assert bind_decoder(model).head.transform == transform


def test_a_softcap_that_the_model_does_not_apply_is_not_believed() -> None:
    model = tiny_model("llama", changes={"final_logit_softcapping": 30.0})
    assert bind_decoder(model).head.transform == LogitTransform()


def test_the_parts_are_the_models_own() -> None:
    decoder = bind_decoder(tiny_model("qwen2_vl"))
    assert decoder.blocks is decoder.model.model.language_model.layers
    assert decoder.final_norm is decoder.model.model.language_model.norm
    assert decoder.head.weight is decoder.model.lm_head.weight
    assert (decoder.num_blocks, decoder.hidden_size, decoder.head.num_rows) == (4, 32, 160)


def test_a_model_without_a_final_norm_is_bound_with_the_identity() -> None:
    config = OpenAIGPTConfig(vocab_size=64, n_embd=16, n_layer=3, n_head=2, n_positions=16)
    decoder = bind_decoder(OpenAIGPTLMHeadModel(config))
    assert not decoder.has_final_norm
    hidden = torch.ones(1, 2, 16)
    assert decoder.features(hidden) is hidden


def test_a_model_without_output_embeddings_is_refused() -> None:
    with pytest.raises(ModelError, match=r"LlamaModel: output embeddings were not found"):
        bind_decoder(LlamaModel(tiny_config("llama")))


def test_an_encoder_decoder_is_refused() -> None:
    config = T5Config(
        vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, pad_token_id=0
    )
    with pytest.raises(ModelError, match=r"T5ForConditionalGeneration: is an encoder-decoder"):
        bind_decoder(T5ForConditionalGeneration(config))


def test_a_list_of_blocks_of_another_length_is_refused() -> None:
    model = tiny_model("llama")
    model.config.num_hidden_layers = 5
    with pytest.raises(ModelError, match=r"list of 5 modules .* found layers \(4\)"):
        bind_decoder(model)


class ShiftedLlama(LlamaForCausalLM):
    """Adds a constant to its logits, which no setting names."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + 1.0
        return output


class BentLlama(LlamaForCausalLM):
    """Applies the square root of the scale in its configuration."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * self.config.logit_scale**0.5
        return output


@pytest.mark.parametrize("kind", [ShiftedLlama, BentLlama])
def test_an_unknown_transform_behind_the_head_is_refused(kind: type[LlamaForCausalLM]) -> None:
    config = tiny_config("llama", changes={"logit_scale": 0.25})
    with pytest.raises(ModelError, match=rf"{kind.__name__}: what follows the head is neither"):
        bind_decoder(kind(config))


class MaskedCohere(CohereForCausalLM):
    """Forbids one token, so that its logits are not a monotone map of the raw product."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits[..., 5] = torch.finfo(output.logits.dtype).min
        return output


def test_a_model_that_masks_tokens_is_refused() -> None:
    with pytest.raises(ModelError, match="MaskedCohere: what follows the head"):
        bind_decoder(MaskedCohere(tiny_config("cohere")))


class TwiceNormed(nn.Module):
    """A norm that the model follows with another step of its own."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.norm(hidden * 1.0)
        return normed


def test_a_norm_inside_a_wrapper_is_found_as_the_wrapper() -> None:
    model = tiny_model("llama")
    model.model.norm = TwiceNormed(model.model.norm)
    assert bind_decoder(model).final_norm is model.model.norm


class SightedLlama(LlamaForCausalLM):
    """Needs an image in every pass."""

    def forward(self, *args: Any, pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


def test_a_model_that_cannot_do_without_an_image_is_refused() -> None:
    with pytest.raises(ModelError, match=r"text-only forward pass failed; .*'pixel_values'\. Use"):
        bind_decoder(SightedLlama(tiny_config("llama")))


class LoopedLlama(LlamaForCausalLM):
    """Runs its backbone twice per pass."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        super().forward(*args, **kwargs)
        return super().forward(*args, **kwargs)


def test_blocks_that_run_more_than_once_are_refused() -> None:
    with pytest.raises(ModelError, match="LoopedLlama: decoder blocks do not run once each"):
        bind_decoder(LoopedLlama(tiny_config("llama")))


def test_the_trace_reads_ordinary_tokens_only() -> None:
    model = tiny_model("qwen2_vl", image_token_id=4)
    seen: list[list[int]] = []
    model.get_input_embeddings().register_forward_pre_hook(
        lambda _, args: seen.extend(args[0].tolist())
    )
    bind_decoder(model)
    assert seen
    tokens = {token for row in seen for token in row}
    assert not {1, 2, 4} & tokens  # beginning, end, image
    assert [row for row in seen if 0 in row] == [[3, 5, 6, 0, 0, 0]]  # the one padded row
