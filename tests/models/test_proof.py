"""The proof: passes that read other than what the model computes are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from support.families import tiny_model
from support.features import final_features
from support.shrinking import shrunken_config, shrunken_model
from vlsi_cache.errors import ModelError
from vlsi_cache.models import LogitTransform, bind_decoder, run_backbone

TOKENS = torch.arange(3, 21).view(2, 9)


def shrunken(model_type: str, *, sees_images: bool = False, **changes: Any) -> PreTrainedModel:
    config = shrunken_config(model_type, changes)
    return shrunken_model(config, sees_images=sees_images)


def test_a_norm_that_also_runs_before_the_blocks_is_read_after_them() -> None:
    model = shrunken("nanochat")
    decoder = bind_decoder(model)
    features = final_features(decoder, {"input_ids": TOKENS})
    logits = model(input_ids=TOKENS, use_cache=False).logits
    torch.testing.assert_close(decoder.head.logits(features), logits)
    features.square().sum().backward()
    assert all(
        any(weight.grad is not None and weight.grad.any() for weight in block.parameters())
        for block in decoder.blocks
    )


def test_bert_is_refused_since_it_reads_later_tokens() -> None:
    with pytest.raises(ModelError, match=r"^BertLMHeadModel: a later token changes the logits"):
        bind_decoder(shrunken("bert"))


def test_bert_as_a_decoder_is_bound_although_its_last_norm_is_outside_the_backbone() -> None:
    model = shrunken("bert", is_decoder=True)
    decoder = bind_decoder(model)
    assert not decoder.backbone_runs_final_norm
    with torch.no_grad():
        features = final_features(decoder, {"input_ids": TOKENS})
        logits = model(input_ids=TOKENS, use_cache=False).logits
    torch.testing.assert_close(decoder.head.logits(features), logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bidirectional_attention_is_refused(dtype: torch.dtype) -> None:
    model = tiny_model("gemma3", changes={"use_bidirectional_attention": True}).to(dtype)
    with pytest.raises(ModelError, match="a later token changes the logits"):
        bind_decoder(model)


def test_paligemma_is_refused_since_its_prompt_reads_later_tokens() -> None:
    with pytest.raises(ModelError, match="a later token changes the logits"):
        bind_decoder(tiny_model("paligemma"))


def test_a_model_that_reads_padding_is_refused() -> None:
    model = tiny_model("llama")
    seen: list[torch.Tensor] = []
    model.get_input_embeddings().register_forward_hook(lambda _, args, __: seen.append(args[0]))
    # each row by its share of padding, as a mean over the whole sequence would
    model.model.layers[1].register_forward_hook(
        lambda _, __, output: output * (1 + (seen[-1] == 0).float().mean(1)[:, None, None])
    )
    with pytest.raises(ModelError, match="padding on the right changes the logits"):
        bind_decoder(model)


def test_a_model_whose_rows_depend_on_one_another_is_refused() -> None:
    model = tiny_model("llama")
    seen: list[torch.Tensor] = []
    model.get_input_embeddings().register_forward_hook(lambda _, args, __: seen.append(args[0]))
    # a capacity that padding in any row takes up
    model.model.layers[1].register_forward_hook(
        lambda _, __, output: output * (1 + (seen[-1] == 0).float().mean())
    )
    with pytest.raises(ModelError, match="the pass without its head gives other logits"):
        bind_decoder(model)


def _detach(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return args[0].detach(), *args[1:]


def test_a_student_whose_blocks_get_no_gradient_is_refused_and_a_teacher_is_not() -> None:
    model = tiny_model("llama")
    model.model.layers[2].register_forward_pre_hook(_detach)
    with pytest.raises(ModelError, match=r"does not reach every block; .*found none in 0, 1"):
        bind_decoder(model)
    assert bind_decoder(model, learns=False).num_blocks == 4


def test_frozen_weights_do_not_hide_the_gradient() -> None:
    bind_decoder(tiny_model("llama").requires_grad_(False))


def test_a_block_that_does_not_read_the_one_before_it_is_refused() -> None:
    model = tiny_model("llama")
    model.model.layers[2].register_forward_pre_hook(lambda _, args: (args[0] * 1.5, *args[1:]))
    with pytest.raises(ModelError, match="block 2 does not read what block 1 gives"):
        bind_decoder(model)


@pytest.mark.parametrize("family", ["llama", "mamba", "qwen3_vl"])
def test_binding_holds_no_graph_and_leaves_no_gradient(family: str) -> None:
    decoder = bind_decoder(tiny_model(family))
    assert all(weight.grad is None for weight in decoder.model.parameters())


def test_the_cap_of_xlstm_is_found() -> None:
    assert bind_decoder(shrunken("xlstm")).head.transform == LogitTransform(softcap=30.0)


def test_a_family_without_a_headless_part_makes_no_logits_that_nobody_reads() -> None:
    model = shrunken("llama4", sees_images=True)
    decoder = bind_decoder(model)
    assert decoder.backbone is model
    lengths: list[int] = []
    output: Any = model.get_output_embeddings()
    output.register_forward_hook(lambda _, __, logits: lengths.append(logits.shape[1]))
    with torch.no_grad():
        _, features = run_backbone(decoder, (), {"input_ids": TOKENS}, torch.arange(18))
        assert lengths == [1]
        whole = model(input_ids=TOKENS, use_cache=False).logits
    torch.testing.assert_close(decoder.head.logits(features), whole.flatten(0, 1))


def test_pixels_in_another_dtype_are_cast_to_the_models() -> None:
    model = tiny_model("llava", changes={"image_seq_length": 4})
    decoder = bind_decoder(model)
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[3, *[150] * 4, 5, 6]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    positions = torch.arange(ids.numel())
    with torch.no_grad():
        rounded = pixels.bfloat16()
        _, cast = run_backbone(decoder, (), inputs | {"pixel_values": rounded}, positions)
        _, plain = run_backbone(decoder, (), inputs | {"pixel_values": rounded.float()}, positions)
    assert torch.equal(cast, plain)
