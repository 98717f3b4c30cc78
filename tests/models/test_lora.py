"""Adapters in families with unusual blocks."""

from __future__ import annotations

import copy

import pytest
from torch import nn

from support.families import tiny_model
from vlsi_cache.errors import ModelError
from vlsi_cache.models import Decoder, bind_decoder, linear_names, lora_config


def test_transposed_maps_are_announced_to_peft() -> None:
    decoder = bind_decoder(tiny_model("gpt2"))
    assert lora_config(decoder, rank=2, alpha=2).fan_in_fan_out
    assert len(linear_names(decoder)) == 4 * decoder.num_blocks


def test_state_space_mixers_are_adapted_only_where_they_call_their_maps() -> None:
    names = linear_names(bind_decoder(tiny_model("mamba", num_layers=3)))
    assert names == [f"backbone.layers.{index}.mixer.in_proj" for index in range(3)]


def test_names_are_full_so_that_nothing_else_matches() -> None:
    decoder = bind_decoder(tiny_model("llava", num_layers=2))
    names = linear_names(decoder)
    assert len(names) == len(set(names))
    assert all(name.startswith("model.language_model.layers.") for name in names)


def test_blocks_without_linear_maps_are_refused() -> None:
    decoder = bind_decoder(tiny_model("llama", num_layers=1))
    empty = Decoder(
        model=copy.deepcopy(decoder.model),
        body=decoder.body,
        blocks=nn.ModuleList([nn.LayerNorm(4)]),
        final_norm=nn.Identity(),
        head=decoder.head,
    )
    with pytest.raises(ModelError, match="hold no linear maps"):
        lora_config(empty, rank=2, alpha=2)


def test_rank_and_alpha_arrive() -> None:
    config = lora_config(bind_decoder(tiny_model("llama")), rank=8, alpha=16, dropout=0.1)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (8, 16, 0.1)
