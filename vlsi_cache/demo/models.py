"""The demo's models: real Qwen2-VL, small enough to train from scratch on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from vlsi_cache.files import share_weights

__all__ = ["build_processor", "save_untrained", "share_vision_tower"]

_IMAGE_SIDE = 64
_PATCH = 8
_SPREAD = 0.08
"""Spread of the initial weights. The usual 0.02 is made for widths in the thousands, and costs
minutes at this width."""
_LAST_FILE = "processor_config.json"
"""The file that is written last, when the weights are on disk."""
_END = "<|im_end|>"
_PAD = "<|endoftext|>"
_SPECIAL = [
    _PAD,
    "<|im_start|>",
    _END,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}"
    "{% for part in message.content %}{{ part.text }}{% endfor %}<|im_end|>"
    "{% endgeneration %}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML as Qwen2-VL has it, without the line break between turns."""


def build_processor(texts: Iterable[str]) -> Qwen2VLProcessor:
    """Build a Qwen2-VL processor whose byte-level BPE is trained on the demo's own words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, "user", "assistant", "system"], trainer)
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            patch_size=_PATCH,
            min_pixels=_IMAGE_SIDE**2,
            max_pixels=_IMAGE_SIDE**2,
        ),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            eos_token=_END,
            pad_token=_PAD,
            additional_special_tokens=_SPECIAL[3:],
        ),
        video_processor=Qwen2VLVideoProcessor(patch_size=_PATCH),
        chat_template=CHAT_TEMPLATE,
    )


def save_untrained(
    folder: Path, processor: Qwen2VLProcessor, *, num_blocks: int, hidden_size: int, seed: int
) -> Path:
    """Write a randomly initialised Qwen2-VL and its processor. A finished folder is kept.

    Args:
        folder: Folder to write.
        processor: Processor that teacher and student share.
        num_blocks: Number of decoder blocks.
        hidden_size: Width of the decoder, a multiple of 24.
        seed: Seed of the weights.
    """
    tokenizer = processor.tokenizer

    def make() -> tuple[Any, Any]:
        config = _config(tokenizer, num_blocks, hidden_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Qwen2VLForConditionalGeneration(config)
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        return model, processor

    return _save_once(folder, make)


def share_vision_tower(student: Path, teacher: Path, folder: Path) -> Path:
    """Copy the student with the teacher's vision tower, since all sizes of Qwen2-VL share one.

    Args:
        student: Untrained checkpoint.
        teacher: Trained checkpoint of the same width.
        folder: Folder to write. A finished folder is kept.
    """

    def make() -> tuple[Any, Any]:
        model = Qwen2VLForConditionalGeneration.from_pretrained(student)
        seeing = Qwen2VLForConditionalGeneration.from_pretrained(teacher)
        model.model.visual.load_state_dict(seeing.model.visual.state_dict())
        return model, AutoProcessor.from_pretrained(student)

    return _save_once(folder, make)


def _save_once(folder: Path, make: Callable[[], tuple[Any, Any]]) -> Path:
    """Save a model and its processor, unless the folder holds both already."""
    if not (folder / _LAST_FILE).is_file():
        model, processor = make()
        model.save_pretrained(folder)
        share_weights(folder)
        processor.save_pretrained(folder)
    return folder


def _config(tokenizer: Any, num_blocks: int, hidden_size: int) -> Qwen2VLConfig:
    return Qwen2VLConfig(
        text_config=_text_config(tokenizer, num_blocks, hidden_size),
        vision_config={
            "depth": 3,
            "embed_dim": 96,
            "hidden_size": hidden_size,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": _PATCH,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "initializer_range": _SPREAD,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def _text_config(tokenizer: Any, num_blocks: int, hidden_size: int) -> dict[str, Any]:
    heads = hidden_size // 24
    return {
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": num_blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 1024,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [4, 4, 4],
            "rope_theta": 10000.0,
        },
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
        "initializer_range": _SPREAD,
    }
