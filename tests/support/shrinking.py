"""Tiny models of any family of transformers, by rules on the names of configuration fields."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

__all__ = ["MOST_WEIGHTS", "shrunken_config", "shrunken_model"]

NUM_LAYERS = 4
VOCAB_SIZE = 160
FIRST_SPECIAL_ID = 100
MOST_WEIGHTS = 30_000_000
"""A larger model escaped the rules."""

# The first pattern that a field's name matches gives its value. None leaves it as it is.
_RULES: tuple[tuple[str, int | float | None], ...] = (
    (
        r"type_vocab_size|task_type_vocab_size|vocab_offset|num_labels|in_channels|out_channels",
        None,
    ),
    (
        r".*vocab(_size(_per_layer_input|_nopad)?)?|n_vocab|encoder_hash_byte_group_vocab",
        VOCAB_SIZE,
    ),
    (r"num_nextn_predict_layers|num_mtp_layers|num_kv_shared_layers", 0),
    (r"num_hidden_layers|n_layers?|num_layers|num_blocks|decoder_layers|depth|layers", NUM_LAYERS),
    (r"num_decoder_layers|num_encoder_layers|encoder_layers|conf_num_hidden_layers", 2),
    (r"num_layers_per_stack|num_hidden_layers_.*|num_global_layers", 2),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index|num_hash_layers", 1),
    (r"num_query_groups", 4),
    (r"index_n_heads|linear_num_key_heads|linear_num_value_heads", 4),
    (r"(num_|n_|decoder_|encoder_|mamba_n_|mamba_num_|swa_|.*_)*(attention_)?heads?", 4),
    (r"qk_head_dim|attention_head_dim", 16),
    (r"rotary_dim", 8),
    (r"linear_(key|value)_head_dim|.*head_dim|d_kv|d_head|dim_head|kv_channels|.*head_size", 8),
    (r".*lora_rank|lora_rank_.*|.*_lora_dim|.*_rank|.*_low_rank_dim", 8),
    (r"num_experts_per_tok(en)?|moe_top_?k|moe_k|top_?k|num_selected_experts|moe_topk", 2),
    (
        r"n_group|topk_group|num_expert_group|n_shared_experts|num_shared_experts|moe_num_shared.*",
        1,
    ),
    (r"(num_|n_|moe_num_)?(local_|routed_)?experts|expert_num|num_moe_experts|n_routed_experts", 4),
    (r"zero_expert_num", 2),
    (r"max_position_embeddings|n_positions|max_seq_len|max_sequence_length|context_length", 256),
    (r"n_ctx|max_target_positions|max_source_positions|model_max_length", 256),
    (r".*(intermediate_size|intermediate_dim|ffn_dim|ffn_hidden_size|ffn_size)(_mlp)?", 64),
    (r"d_ff|dff|dim_ff|n_inner|d_inner|feed_forward_size|ff_dim|mlp_dim|inner_hidden_size", 64),
    (r".*expert_dim|intermediate_size_.*|.*_mlp_dim|proj(ection)?_intermediate_size", 64),
    (r".*hidden_size|hidden_size_.*|.*hidden_dim|d_model|n_embd|dim|.*emb(ed|edding)?_dim", 32),
    (r".*embedding_size|.*output_dim|output_size|lru_width|projection_dim|.*_proj_dim", 32),
    (r"projector_(input|output)_dim|.*query_dim|image_feature_dim|text_dim|vision_dim", 32),
    (r"(mamba_)?(d_state|state_size|ssm_state_size)|time_step_rank|mamba_dt_rank", 8),
    (r"mamba_d_ssm", 64),
    (r"mamba_n_groups|n_groups", 1),
    (r"(mamba_)?chunk_size|sliding_window(_size)?|attention_chunk_size", 16),
    (r"initializer_range|init_std|initializer_std", 0.2),
)
_COMPILED: tuple[tuple[re.Pattern[str], int | float | None], ...] = tuple(
    (re.compile(pattern), value) for pattern, value in _RULES
)
_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "depth")
_KEYS_AND_VALUES = re.compile(r".*(key_value_heads|kv_heads)")

# What no rule can know: fields that must fit one another in a way of the family's own.
_SECTIONS = {"rope_parameters": {"mrope_section": [2, 1, 1]}}
_ROPE_BY_KIND = {
    kind: {"rope_type": "default", "rope_theta": 10000.0}
    for kind in ("full_attention", "sliding_attention")
}
_INDEXED = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 64,
    "indexer_compress_ratio": 4,
    "ngram_vocab_size_base": 160,
}
# Towers of timm stand in for a package that is not installed. The decoder is the family's own.
_TOWER = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 16,
    "model_args": {"embed_dim": 32},
}
# What a family's default configuration needs before it validates.
_STARTS: dict[str, dict[str, Any]] = {
    "fast_vlm": {"vision_config": _TOWER},
    "perception_lm": {"vision_config": _TOWER},
}
_FITS: dict[str, dict[str, Any]] = {
    "inkling_mm_model": {"vision_config": {"n_layers": 6, "patch_size": 8}},
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8},
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8},
    "mamba2": {"num_heads": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "chameleon": {"vocabulary_map": {"<image>": 101}},
    "step3p7": {"text_config": {"sliding_window": 16}},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 120, "audio_start_token_id": 121},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "ministral": {"head_dim": 8},
    "glm4v": {"text_config": _SECTIONS},
    "glm46v": {"text_config": _SECTIONS},
    "glm4v_moe": {"text_config": {"rope_parameters": {"mrope_section": [1, 1, 0]}}},
    "glm_ocr": {"text_config": _SECTIONS},
    "glmga": {"text_config": _SECTIONS},
    "paddleocr_vl": {"text_config": _SECTIONS},
    "qwen2_5_omni_thinker": {
        "text_config": _SECTIONS,
        "vision_start_token_id": 120,
        "audio_start_token_id": 121,
    },
    "qwen2_5_vl": {"text_config": _SECTIONS},
    "qwen2_vl": {"text_config": _SECTIONS},
    "reformer": {
        "is_decoder": True,
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [16, 16],
    },
    "mistral4": {"head_dim": 16},
    "zamba2": {"attention_hidden_size": 64, "attention_head_dim": 16, "mamba_headdim": 16},
    "xlnet": {"d_head": 8},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
    "internvl": {"vision_config": {"image_size": [32, 32], "patch_size": [16, 16]}},
    "qianfan_ocr": {"vision_config": {"image_size": [32, 32], "patch_size": [16, 16]}},
    "molmo2": {"adapter_config": {"vision_feature_layer": [3, 1]}},
    "glm5_next": {"text_config": {"num_key_value_heads": 4}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "hunyuan_vl": {
        "text_config": {"head_dim": 8, "rope_parameters": {"mrope_section": [1, 1, 1, 1]}}
    },
    "cohere_compass_text": {"rope_parameters": _ROPE_BY_KIND},
    "cohere_compass": {"text_config": {"rope_parameters": _ROPE_BY_KIND}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "qwen4_exp_text": _INDEXED,
    "qwen4_exp": {"text_config": _INDEXED},
    "gemma4_unified_assistant": {"text_config": {"num_kv_shared_layers": 2}},
    "zamba": {
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid", "linear_attention"],
    },
    "deepseek_ocr2": {
        "text_config": {
            "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
            "num_experts_per_tok": 2,
        }
    },
    "diffusion_gemma": {
        "text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64}
    },
    "emu3": {
        "vocabulary_map": {"<image>": 101},
        "vq_config": {"base_channels": 32, "codebook_size": 64},
    },
    "ernie4_5_vl_moe": {"text_config": {"rope_parameters": {"mrope_section": [1, 1, 2]}}},
    "granite4_vision": {
        "deepstack_layer_map": [[1, 1]],
        "downsample_rate": "1/2",
        "vision_config": {"hidden_size": 64},
    },
    "dots3_note_text": {"head_dim": 16},
    "dots3_note": {
        "text_config": {"head_dim": 16},
        "vision_config": {"adapter_in_dim": 32, "adapter_out_dim": 32, "per_layer_config": None},
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32, "conv_output_size": 480},
    },
    "muse_spark": {
        "audio_config": {
            "hidden_sizes": [32, 32],
            "depths": [1, 1],
            "patch_sizes": [16, 6],
            "out_hidden_size": 32,
            "num_hidden_layers": 2,
        }
    },
    "florence2": {
        "vision_config": {
            "depths": [1, 1],
            "embed_dim": [32, 32],
            "num_heads": [4, 4],
            "num_groups": [4, 4],
            "patch_size": [7, 3],
            "patch_stride": [4, 2],
            "patch_padding": [3, 1],
            "patch_prenorm": [False, True],
        }
    },
}
_IDS = re.compile(r".*token_(id|ids|index)|.*_(token|start|end|newline|patch|pad)_id")


def shrunken_config(model_type: str, overrides: dict[str, Any] | None = None) -> PreTrainedConfig:
    """The family's default configuration with every size made tiny."""
    config_class: Any = CONFIG_MAPPING[model_type]
    fields = _shrink(config_class(**_STARTS.get(model_type, {})).to_dict(), _ids())
    fields = _merged(fields, _FITS.get(model_type, {}))
    return config_class(**_merged(fields, overrides or {}))  # type: ignore[no-any-return]


def shrunken_model(config: PreTrainedConfig, *, sees_images: bool) -> PreTrainedModel:
    """A seeded random model of the configuration.

    Raises:
        ValueError: the model is not tiny.
    """
    loader: Any = AutoModelForImageTextToText if sees_images else AutoModelForCausalLM
    with torch.device("meta"):
        weights = sum(part.numel() for part in loader.from_config(config).parameters())
    if weights > MOST_WEIGHTS:
        raise ValueError(f"{weights:,} weights are too many")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = loader.from_config(config, dtype=torch.float32).eval()
    return model


def _merged(fields: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(fields)
    for name, value in changes.items():
        inner = fields.get(name)
        both = isinstance(value, dict) and isinstance(inner, dict)
        merged[name] = _merged(inner, value) if both else value
    return merged


def _ids() -> Callable[[], int]:
    counter = iter(range(FIRST_SPECIAL_ID, VOCAB_SIZE))
    return lambda: next(counter)


def _shrink(fields: dict[str, Any], next_id: Callable[[], int]) -> dict[str, Any]:
    depth = next((fields[name] for name in _DEPTHS if isinstance(fields.get(name), int)), None)
    shrunken = {}
    for name, value in fields.items():
        if name in ("id2label", "label2id"):
            continue
        if name == "per_layer_config" and isinstance(value, dict):
            shrunken[name] = {
                index: _shrink(block, next_id)
                for index, block in value.items()
                if int(index) < NUM_LAYERS
            } or None
            continue
        if _KEYS_AND_VALUES.fullmatch(name) and isinstance(value, int):
            heads = [fields.get(other) for other in ("num_attention_heads", "num_heads", "n_head")]
            shrunken[name] = 1 if value == 1 else 4 if value in heads else 2
            continue
        if name.startswith("rope_") and isinstance(value, dict):
            shrunken[name] = _rope(value)
        elif isinstance(value, dict) and all(isinstance(key, str) for key in value):
            shrunken[name] = _shrink(value, next_id)
        elif _IDS.fullmatch(name):
            shrunken[name] = _small_id(value, next_id)
        elif isinstance(value, (list, tuple)):
            shrunken[name] = _short(list(value), depth)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            shrunken[name] = _small(name, value)
        else:
            shrunken[name] = value
    return shrunken


def _small(name: str, value: float) -> float:
    for pattern, small in _COMPILED:
        if pattern.fullmatch(name):
            return value if small is None or value == 0 else small
    return value


def _small_id(value: Any, next_id: Callable[[], int]) -> Any:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, (list, tuple)):
        return [_small_id(item, next_id) for item in value]
    return value if 0 <= value < FIRST_SPECIAL_ID else next_id()


def _short(values: list[Any], depth: int | None) -> list[Any]:
    if depth is None or not values:
        return values
    if len(values) == depth:
        # every kind of block is there, in the order in which the kinds first come
        kinds = [value for index, value in enumerate(values) if value not in values[:index]]
        padded = (kinds if len(kinds) > 1 else []) + values
        return padded[:NUM_LAYERS]
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        inside = [value for value in values if value < NUM_LAYERS]
        return inside or ([1] if max(values) < depth else values)
    return values


def _rope(fields: dict[str, Any]) -> dict[str, Any]:
    if any(isinstance(value, dict) for value in fields.values()):
        return {
            name: _rope(value) if isinstance(value, dict) else value
            for name, value in fields.items()
        }
    if "mrope_section" in fields:
        return fields | {"mrope_section": [2, 1, 1]}
    return fields
