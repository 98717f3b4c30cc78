"""The demo's models: real Qwen2-VL, small enough to train from scratch on a CPU."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

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

__all__ = ["build_processor", "save_untrained", "share_vision_tower"]

_IMAGE_SIDE = 64
_PATCH = 8
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
"""ChatML, as Qwen2-VL speaks it, less the line break between turns."""


def build_processor(texts: Iterable[str]) -> Qwen2VLProcessor:
    """A Qwen2-VL processor whose byte-level BPE is trained on the demo's own words."""
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
    """Write a randomly initialised Qwen2-VL and its processor; a finished folder is kept.

    Args:
        folder: where to write.
        processor: shared by teacher and student.
        num_blocks: decoder blocks.
        hidden_size: width of the decoder, a multiple of 24.
        seed: of the weights.
    """
    if (folder / "config.json").is_file() and (folder / "processor_config.json").is_file():
        return folder
    tokenizer = processor.tokenizer
    heads = hidden_size // 24
    config = Qwen2VLConfig(
        text_config={
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
            # the usual 0.02 is made for widths in the thousands; at this width it costs minutes
            "initializer_range": 0.08,
        },
        vision_config={
            "depth": 3,
            "embed_dim": 96,
            "hidden_size": hidden_size,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": _PATCH,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "initializer_range": 0.08,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def share_vision_tower(student: Path, teacher: Path, folder: Path) -> Path:
    """A copy of the student with the teacher's vision tower, as all sizes of Qwen2-VL share one.

    Args:
        student: untrained checkpoint.
        teacher: trained checkpoint of the same width.
        folder: where to write; a finished folder is kept.
    """
    if (folder / "config.json").is_file() and (folder / "processor_config.json").is_file():
        return folder
    model = Qwen2VLForConditionalGeneration.from_pretrained(student)
    seeing = Qwen2VLForConditionalGeneration.from_pretrained(teacher)
    model.model.visual.load_state_dict(seeing.model.visual.state_dict())
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(student).save_pretrained(folder)
    return folder
