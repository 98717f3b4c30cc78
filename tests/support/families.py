"""Tiny random models of every family that the tests cover."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

__all__ = ["FAMILIES", "IMAGE_FAMILIES", "TEXT_FAMILIES", "tiny_config", "tiny_model"]

NUM_LAYERS = 4
HIDDEN_SIZE = 32
VOCAB_SIZE = 160
IMAGE_TOKEN_ID = 150

# Gemma alternates two kinds of attention. Pairs of equal neighbours let a block run again on its
# neighbour's inputs.
_GEMMA_LAYERS = ["sliding_attention", "sliding_attention", "full_attention", "full_attention"]
_GEMMA = {"head_dim": 8, "layer_types": _GEMMA_LAYERS, "sliding_window": 8}

_TEXT: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 8}),
    "gemma2": (
        "Gemma2Config",
        {**_GEMMA, "final_logit_softcapping": 2.0},
    ),
    "gemma3": ("Gemma3TextConfig", _GEMMA),
    "cohere": ("CohereConfig", {"logit_scale": 0.0625}),
    "granite": ("GraniteConfig", {"logits_scaling": 8.0, "embedding_multiplier": 12.0}),
    "mistral": ("MistralConfig", {"sliding_window": 8}),
    "phi3": ("Phi3Config", {}),
    "gpt2": ("GPT2Config", {"n_inner": 64}),
    "mamba": ("MambaConfig", {"state_size": 4, "expand": 2}),
}

_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
_QWEN_TOWER = {
    "depth": 2,
    "num_heads": 4,
    "patch_size": 8,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_SECTIONS = {"type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
_QWEN3_SECTIONS = {**_SECTIONS, "mrope_interleaved": True}
_SIGLIP = {"model_type": "siglip_vision_model", **_TOWER, "vision_use_head": False}
_CLIP = {"model_type": "clip_vision_model", **_TOWER, "projection_dim": 32}

_IMAGE: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # family: (configuration, its text model, changes of the text, vision tower, the rest)
    "qwen2_vl": (
        "Qwen2VLConfig",
        "qwen2_vl_text",
        {"rope_parameters": _SECTIONS},
        {**_QWEN_TOWER, "embed_dim": 32, "hidden_size": HIDDEN_SIZE, "mlp_ratio": 2},
        {"vision_start_token_id": 152, "vision_end_token_id": 153, "video_token_id": 151},
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLConfig",
        "qwen2_5_vl_text",
        {"rope_parameters": _SECTIONS},
        {
            **_QWEN_TOWER,
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": HIDDEN_SIZE,
            "window_size": 32,
            "fullatt_block_indexes": [1],
        },
        {"vision_start_token_id": 152, "vision_end_token_id": 153, "video_token_id": 151},
    ),
    "qwen3_vl": (
        "Qwen3VLConfig",
        "qwen3_vl_text",
        {"rope_parameters": _QWEN3_SECTIONS, "head_dim": 8},
        {
            **_QWEN_TOWER,
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": HIDDEN_SIZE,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        {"vision_start_token_id": 152, "vision_end_token_id": 153, "video_token_id": 151},
    ),
    "llava_onevision": (
        "LlavaOnevisionConfig",
        "qwen2",
        {},
        _SIGLIP,
        {"video_token_id": 151, "image_grid_pinpoints": [[16, 16], [16, 32], [32, 16], [32, 32]]},
    ),
    "llava": ("LlavaConfig", "llama", {}, _CLIP, {"image_seq_length": 4}),
    "smolvlm": ("SmolVLMConfig", "llama", {}, _TOWER, {"scale_factor": 2}),
    "idefics3": ("Idefics3Config", "llama", {}, _TOWER, {"scale_factor": 2}),
    "internvl": (
        "InternVLConfig",
        "qwen2",
        {},
        {**_TOWER, "image_size": [16, 16], "patch_size": [4, 4]},
        {"image_seq_length": 4},
    ),
    "paligemma": (
        "PaliGemmaConfig",
        "gemma",
        {"head_dim": 8},
        {**_SIGLIP, "projection_dim": HIDDEN_SIZE, "num_image_tokens": 4},
        {"projection_dim": HIDDEN_SIZE},
    ),
    "gemma3_vision": (
        "Gemma3Config",
        "gemma3_text",
        _GEMMA,
        _SIGLIP,
        {
            "mm_tokens_per_image": 4,
            "boi_token_index": 152,
            "eoi_token_index": 153,
            "initializer_range": 0.2,
        },
    ),
}

TEXT_FAMILIES = tuple(_TEXT)
# PaliGemma reads its whole text in both directions, and is refused.
IMAGE_FAMILIES = tuple(family for family in _IMAGE if family != "paligemma")
FAMILIES = TEXT_FAMILIES + IMAGE_FAMILIES


def tiny_config(
    family: str,
    *,
    vocab_size: int = VOCAB_SIZE,
    num_layers: int = NUM_LAYERS,
    image_token_id: int = IMAGE_TOKEN_ID,
    changes: dict[str, Any] | None = None,
) -> PreTrainedConfig:
    """The configuration of `tiny_model`. `changes` override fields of the outermost one."""
    text = _text_fields(vocab_size, num_layers)
    if family in _TEXT:
        class_name, own = _TEXT[family]
        fields = _cut(text | own, num_layers)
    else:
        class_name, text_type, own, vision, rest = _IMAGE[family]
        fields = {
            "text_config": {"model_type": text_type, **_cut(text | own, num_layers)},
            "vision_config": vision,
            "tie_word_embeddings": False,
            "image_token_id": image_token_id,
            "image_token_index": image_token_id,
            **rest,
        }
    return getattr(transformers, class_name)(**fields | (changes or {}))


def tiny_model(
    family: str,
    *,
    vocab_size: int = VOCAB_SIZE,
    num_layers: int = NUM_LAYERS,
    image_token_id: int = IMAGE_TOKEN_ID,
    seed: int = 0,
    changes: dict[str, Any] | None = None,
) -> PreTrainedModel:
    """A model of `family` in evaluation mode with seeded random weights, about 50,000 of them."""
    config = tiny_config(
        family,
        vocab_size=vocab_size,
        num_layers=num_layers,
        image_token_id=image_token_id,
        changes=changes,
    )
    automatic = (
        transformers.AutoModelForCausalLM
        if family in _TEXT
        else transformers.AutoModelForImageTextToText
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return automatic.from_config(config).eval()


def _text_fields(vocab_size: int, num_layers: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 64,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        # Ten times the usual spread gives logits of a few nats, so that equality means something.
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def _cut(fields: dict[str, Any], num_layers: int) -> dict[str, Any]:
    if "layer_types" in fields:
        return fields | {"layer_types": (_GEMMA_LAYERS * num_layers)[:num_layers]}
    return fields
