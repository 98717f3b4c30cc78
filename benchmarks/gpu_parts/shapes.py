"""Shapes of real models, with tiny ones for a smoke, and models of random weights in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from vlsi_cache.models import Backbone, bind_decoder

__all__ = ["FULL", "QUICK", "ModelShape", "Shapes", "build_backbone"]


@dataclass(frozen=True)
class ModelShape:
    """Shape of a decoder with the layout of Qwen2."""

    name: str
    hidden: int
    blocks: int
    heads: int
    key_value_heads: int
    expansion: int
    vocabulary: int
    """Rows of the head."""
    real_vocabulary: int
    """Rows that the tokenizer can produce."""
    is_tied: bool = True


@dataclass(frozen=True)
class Shapes:
    """Everything that is measured."""

    tokens: int
    """Tokens of the objective."""
    hidden: int
    """Features of the objective."""
    vocabularies: tuple[int, ...]
    candidates: tuple[int, ...]
    entries: int
    """Draws of one candidate."""
    checked_tokens: int
    """Tokens whose values and gradients are compared with float64."""
    students: tuple[ModelShape, ...]
    teacher: ModelShape
    batch: int
    """Samples of a batch."""
    length: int
    """Tokens of a sample."""
    responses: int
    """Response tokens of a sample."""
    samples: int
    """Samples of the dump."""
    shard: int
    """Samples of a shard."""
    loaded: int
    """Samples of the loader's cache."""


FULL = Shapes(
    tokens=8192,
    hidden=4096,
    vocabularies=(128_256, 151_936),
    candidates=(1, 20),
    entries=14,
    checked_tokens=64,
    students=(
        ModelShape("0.5B", 896, 24, 14, 2, 4864, 151_936, 151_643),
        ModelShape("1.5B", 1536, 28, 12, 2, 8960, 151_936, 151_643),
    ),
    teacher=ModelShape("7B", 3584, 28, 28, 4, 18_944, 152_064, 151_643, is_tied=False),
    batch=4,
    length=1024,
    responses=256,
    samples=96,
    shard=16,
    loaded=64,
)
_SMALL = ModelShape("tiny", 64, 8, 4, 2, 128, 512, 500)
QUICK = Shapes(
    tokens=64,
    hidden=32,
    vocabularies=(512, 640),
    candidates=(1, 4),
    entries=4,
    checked_tokens=16,
    students=(_SMALL,),
    teacher=_SMALL,
    batch=2,
    length=64,
    responses=24,
    samples=4,
    shard=2,
    loaded=16,
)


def build_backbone(
    shape: ModelShape, device: torch.device, *, trains: bool = False, processor: Any = None
) -> Backbone:
    """Build a model of random weights on the device, in the dtypes that a run has there.

    Weights are bfloat16 on an accelerator and float32 on a CPU. Those that train are float32, and
    run in bfloat16 autocast on an accelerator.

    Args:
        shape: its shape.
        device: its device.
        trains: whether its own weights will train.
        processor: tokenizer, where conversations are encoded.
    """
    on_device = device.type != "cpu"
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.blocks,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        intermediate_size=shape.expansion,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.is_tied,
        initializer_range=0.02,
    )
    dtype = torch.bfloat16 if on_device and not trains else torch.float32
    with device:
        model: Any = Qwen2ForCausalLM._from_config(config, dtype=dtype)  # noqa: SLF001 (no other)
    model.to(device).eval().requires_grad_(False)
    decoder = bind_decoder(model)
    vocabulary = shape.real_vocabulary
    return Backbone(shape.name, processor, decoder, vocabulary, "0" * 64, autocast=on_device)
