"""One view of any model: its blocks, final norm, head, taps and identity."""

from __future__ import annotations

from vlsi_cache.models.backbone import Backbone, load_backbone
from vlsi_cache.models.binding.binding import bind_decoder
from vlsi_cache.models.binding.head import Head, LogitTransform, aligned_width
from vlsi_cache.models.binding.passes import run_backbone
from vlsi_cache.models.binding.taps import (
    TapCapture,
    TapState,
    capture_taps,
    default_taps,
    resolve_taps,
)
from vlsi_cache.models.decoder import Decoder
from vlsi_cache.models.identity import (
    chat_template_hash,
    config_hash,
    processor_name,
    tokenizer_of,
    vocabulary_hash,
    vocabulary_size,
    weights_fingerprint,
)
from vlsi_cache.models.loading.configs import load_config, load_config_of, text_config
from vlsi_cache.models.loading.context import context_length, short_length
from vlsi_cache.models.loading.loading import load_model
from vlsi_cache.models.loading.precision import saved_dtype, uses_autocast
from vlsi_cache.models.loading.preview import ModelPreview, preview_model
from vlsi_cache.models.loading.processors import load_processor, load_processor_of
from vlsi_cache.models.lora import (
    LoraReach,
    adapt,
    expert_names,
    linear_names,
    lora_config,
    lora_reach,
)
from vlsi_cache.models.outline import Outline, outline_of, outlined_backbone, tensor_outlines
from vlsi_cache.models.places.devices import device_of, is_plain
from vlsi_cache.models.places.hollow import hollow_out, is_hollow
from vlsi_cache.models.places.parallel import is_split

__all__ = [
    "Backbone",
    "Decoder",
    "Head",
    "LogitTransform",
    "LoraReach",
    "ModelPreview",
    "Outline",
    "TapCapture",
    "TapState",
    "adapt",
    "aligned_width",
    "bind_decoder",
    "capture_taps",
    "chat_template_hash",
    "config_hash",
    "context_length",
    "default_taps",
    "device_of",
    "expert_names",
    "hollow_out",
    "is_hollow",
    "is_plain",
    "is_split",
    "linear_names",
    "load_backbone",
    "load_config",
    "load_config_of",
    "load_model",
    "load_processor",
    "load_processor_of",
    "lora_config",
    "lora_reach",
    "outline_of",
    "outlined_backbone",
    "preview_model",
    "processor_name",
    "resolve_taps",
    "run_backbone",
    "saved_dtype",
    "short_length",
    "tensor_outlines",
    "text_config",
    "tokenizer_of",
    "uses_autocast",
    "vocabulary_hash",
    "vocabulary_size",
    "weights_fingerprint",
]
