"""A model without its weights' values is the model that another process holds."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from support.families import tiny_model
from vlsi_cache.models import (
    Backbone,
    Decoder,
    adapt,
    bind_decoder,
    is_hollow,
    outline_of,
    tensor_outlines,
)
from vlsi_cache.models.outline import Outline, outlined_decoder
from vlsi_cache.recipe import LoraSection, ModelSection

TOKENS = torch.arange(3, 21).view(2, 9)


def _outline(decoder: Decoder, folder: Path) -> Outline:
    decoder.model.config.save_pretrained(folder)
    held = Backbone(str(folder), None, decoder, vocab_size=10, fingerprint="f")
    found: Outline = pickle.loads(pickle.dumps(outline_of(held)))  # it is sent
    return found


def _fill(hollow: PreTrainedModel, model: PreTrainedModel) -> None:
    for kind in ("named_parameters", "named_buffers"):
        values = dict(getattr(model, kind)())
        for name, value in getattr(hollow, kind)():
            value.data = values[name].data


# ties and soft-caps, transposed maps, maps that are read directly, towers and rotary tables
@pytest.mark.parametrize("family", ["gemma2", "gpt2", "mamba", "qwen2_vl", "internvl"])
def test_it_has_the_parts_of_the_held_model_and_computes_the_same_once_filled(
    family: str, tmp_path: Path
) -> None:
    decoder = bind_decoder(tiny_model(family).to(torch.bfloat16))
    found = outlined_decoder(ModelSection(model=str(tmp_path)), _outline(decoder, tmp_path))
    assert found is not None
    large = [value for value in found.model.parameters() if value.numel() > 1]
    assert all(is_hollow([value]) for value in large)
    assert (found.head.transform, found.has_final_norm) == (
        decoder.head.transform,
        decoder.has_final_norm,
    )
    for one in (decoder, found):
        adapt(one, LoraSection(), seed=1)
    assert list(tensor_outlines(found.model)) == list(tensor_outlines(decoder.model))
    _fill(found.model, decoder.model)
    with torch.no_grad():
        expected, logits = (
            one.model(input_ids=TOKENS, use_cache=False).logits for one in (decoder, found)
        )
    torch.testing.assert_close(logits, expected)


def test_a_model_that_its_configuration_does_not_give_is_not_outlined(tmp_path: Path) -> None:
    decoder = bind_decoder(tiny_model("llama"))
    outline = _outline(decoder, tmp_path)
    assert outlined_decoder(ModelSection(model=str(tmp_path), use_kernels=True), outline) is None
    decoder.model.config.num_hidden_layers += 1
    decoder.model.config.save_pretrained(tmp_path)
    assert outlined_decoder(ModelSection(model=str(tmp_path)), outline) is None
