"""Real processors and tokenizers, built offline.

Tokenizers are trained on a few sentences with each family's special tokens; image processors are
the families' own at the small sizes of `families.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import transformers
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast, ProcessorMixin

from support.templates import (
    CHATML,
    GEMMA,
    GEMMA3,
    GLM,
    IDEFICS3,
    INTERNVL,
    LLAMA2,
    LLAMA3,
    LLAVA,
    LLAVA_ONEVISION,
    QWEN3,
    QWEN_VL,
    TAGGED,
)

__all__ = [
    "IMAGE_PROCESSORS",
    "MODEL_CHANGES",
    "TEXT_TOKENIZERS",
    "build_tokenizer",
    "image_processor_for",
    "paligemma_processor",
    "text_tokenizer",
]

_CORPUS = [
    "What colour is the circle in the picture? It is red. The square is blue, the triangle green.",
    "You are a helpful assistant. user model system assistant Which of the two is larger?",
    "Yes, no, 1 2 3 4 5 6 7 8 9 0. A small grey ball lies left of the large yellow cube.\n\n",
    "USER: ASSISTANT: User: Assistant: think [INST] [/INST] <<SYS>> <</SYS>>",
]

_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_IM_NAMES = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
_LLAMA_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_GEMMA_NAMES = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
_LLAMA3_SPECIAL = (
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|finetune_right_pad_id|>",
)

_TEXT: dict[str, tuple[str, tuple[str, ...], dict[str, str], str]] = {
    # kind: (pre-tokenization, special tokens, their names, template)
    "chatml": ("bytes", _IM, _IM_NAMES, CHATML),
    "tagged": ("bytes", _IM, _IM_NAMES, TAGGED),
    "qwen3": ("bytes", _IM, _IM_NAMES, QWEN3),
    "llama3": (
        "trimmed bytes",
        _LLAMA3_SPECIAL,
        {
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|eot_id|>",
            "pad_token": "<|finetune_right_pad_id|>",
        },
        LLAMA3,
    ),
    "llama2": ("words", ("<unk>", "<s>", "</s>"), _LLAMA_NAMES, LLAMA2),
    "gemma": (
        "words",
        ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        _GEMMA_NAMES,
        GEMMA,
    ),
    "glm": (
        "bytes",
        ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
        {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        GLM,
    ),
}
TEXT_TOKENIZERS = tuple(_TEXT)

_QWEN_SPECIAL = (*_IM, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_QWEN_IDS = {
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}
_IDEFICS_SPECIAL = (
    *_IM,
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
)
_IDEFICS_NAMES = {"pad_token": "<|endoftext|>", "eos_token": "<end_of_utterance>"}

MODEL_CHANGES: dict[str, dict[str, str]] = {
    # Token ids of a family's configuration, by the token.
    "qwen2_vl": _QWEN_IDS,
    "qwen2_5_vl": _QWEN_IDS,
    "qwen3_vl": _QWEN_IDS,
    "llava": {"image_token_id": "<image>", "image_token_index": "<image>"},
    "llava_onevision": {
        "image_token_id": "<image>",
        "image_token_index": "<image>",
        "video_token_id": "<video>",
        "video_token_index": "<video>",
    },
    "smolvlm": {"image_token_id": "<image>"},
    "idefics3": {"image_token_id": "<image>"},
    "internvl": {"image_token_id": "<IMG_CONTEXT>"},
    "gemma3_vision": {
        "image_token_id": "<image_soft_token>",
        "image_token_index": "<image_soft_token>",
        "boi_token_index": "<start_of_image>",
        "eoi_token_index": "<end_of_image>",
    },
}
IMAGE_PROCESSORS = tuple(MODEL_CHANGES)


@cache
def text_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of one kind with its chat template. It is shared, so do not change it."""
    style, special, names, template = _TEXT[kind]
    tokenizer = build_tokenizer(style, special, names)
    tokenizer.chat_template = template
    return tokenizer


@cache
def image_processor_for(family: str) -> ProcessorMixin:
    """The processor of a family with images. It is shared, so do not change it."""
    if family.startswith("qwen"):
        return _qwen_vl(family)
    return _BUILDERS[family]()


@cache
def paligemma_processor() -> ProcessorMixin:
    """PaliGemma's processor. It is not for chat, because it rewrites the text around images."""
    tokenizer = build_tokenizer(
        "words",
        ("<pad>", "<eos>", "<bos>", "<image>"),
        _GEMMA_NAMES,
        {"image_token": "<image>"},
    )
    images = transformers.SiglipImageProcessor(size={"height": 16, "width": 16})
    images.image_seq_length = 4
    return transformers.PaliGemmaProcessor(images, tokenizer, chat_template=LLAVA)


def build_tokenizer(
    style: str, special: Sequence[str], names: dict[str, str], extra: dict[str, str] | None = None
) -> PreTrainedTokenizerFast:
    """A BPE tokenizer, over bytes (GPT 2, Qwen, Llama 3) or over words after ``▁`` (Llama 2)."""
    backend, alphabet = _untrained(style, has_unknown="<unk>" in special)
    if style == "words":
        special = [*special, *(f"<0x{code:02X}>" for code in range(256))]
    reserved = [AddedToken(token, special=True, normalized=False) for token in special]
    backend.train_from_iterator(
        _CORPUS * 4,
        trainers.BpeTrainer(
            vocab_size=len(reserved) + len(alphabet) + 150,
            special_tokens=reserved,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    steps: list[Any] = []
    if style == "trimmed bytes":  # Llama 3 keeps white space out of its offsets
        steps.append(processors.ByteLevel(trim_offsets=True))
    if begin := names.get("bos_token"):
        pair = (begin, backend.token_to_id(begin))
        steps.append(processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[pair]))
    if steps:
        backend.post_processor = processors.Sequence(steps)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        extra_special_tokens=extra or {},
        **names,
    )


def _untrained(style: str, *, has_unknown: bool) -> tuple[Tokenizer, list[str]]:
    """The pipeline around an empty BPE model, and its first characters."""
    unknown = {"unk_token": "<unk>"} if has_unknown else {}
    backend = Tokenizer(models.BPE(byte_fallback=style == "words", **unknown))
    if style != "words":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        return backend, pre_tokenizers.ByteLevel.alphabet()
    # As in Llama's own tokenizer.json: the space is part of the following word.
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    # Words must not merge with their neighbours while training on so little.
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    return backend, [*map(chr, range(32, 127)), "▁", "\n"]


def _qwen_vl(family: str) -> ProcessorMixin:
    name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[family]
    tokenizer = build_tokenizer("bytes", _QWEN_SPECIAL, _IM_NAMES)
    images = transformers.Qwen2VLImageProcessor(
        patch_size=8,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": 16 * 16, "longest_edge": 32 * 32},
    )
    videos: Any = (
        transformers.Qwen3VLVideoProcessor()
        if family == "qwen3_vl"
        else transformers.Qwen2VLVideoProcessor()
    )
    return getattr(transformers, f"{name}Processor")(
        images, tokenizer, videos, chat_template=QWEN_VL
    )


def _llava() -> ProcessorMixin:
    tokenizer = build_tokenizer(
        "words",
        ("<unk>", "<s>", "</s>", "<pad>", "<image>"),
        {**_LLAMA_NAMES, "pad_token": "<pad>"},
    )
    images = transformers.CLIPImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    return transformers.LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA,
    )


def _llava_onevision() -> ProcessorMixin:
    tokenizer = build_tokenizer("bytes", (*_IM, "<image>", "<video>"), _IM_NAMES)
    images = transformers.LlavaOnevisionImageProcessor(
        size={"height": 16, "width": 16},
        image_grid_pinpoints=[[16, 16], [16, 32], [32, 16], [32, 32]],
    )
    return transformers.LlavaOnevisionProcessor(
        images,
        tokenizer,
        transformers.LlavaOnevisionVideoProcessor(),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=LLAVA_ONEVISION,
    )


def _smolvlm() -> ProcessorMixin:
    return transformers.SmolVLMProcessor(
        _tiled(transformers.SmolVLMImageProcessor),
        build_tokenizer("bytes", (*_IDEFICS_SPECIAL, "<video>"), _IDEFICS_NAMES),
        transformers.SmolVLMVideoProcessor(),
        image_seq_len=1,
        chat_template=IDEFICS3,
    )


def _idefics3() -> ProcessorMixin:
    return transformers.Idefics3Processor(
        _tiled(transformers.Idefics3ImageProcessor),
        build_tokenizer("bytes", _IDEFICS_SPECIAL, _IDEFICS_NAMES),
        image_seq_len=1,
        chat_template=IDEFICS3,
    )


def _tiled(kind: Any) -> Any:
    return kind(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})


def _internvl() -> ProcessorMixin:
    tokenizer = build_tokenizer(
        "bytes",
        (*_IM, "<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
        _IM_NAMES,
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )
    images = transformers.GotOcr2ImageProcessor(
        size={"height": 16, "width": 16}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    return transformers.InternVLProcessor(
        images,
        tokenizer,
        transformers.InternVLVideoProcessor(),
        image_seq_length=4,
        chat_template=INTERNVL,
    )


def _gemma3() -> ProcessorMixin:
    special = (
        "<pad>",
        "<eos>",
        "<bos>",
        "<start_of_turn>",
        "<end_of_turn>",
        "<start_of_image>",
        "<end_of_image>",
        "<image_soft_token>",
    )
    tokenizer = build_tokenizer(
        "words",
        special,
        _GEMMA_NAMES,
        {
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
    )
    images = transformers.Gemma3ImageProcessor(size={"height": 16, "width": 16})
    return transformers.Gemma3Processor(images, tokenizer, chat_template=GEMMA3, image_seq_length=4)


_BUILDERS = {
    "llava": _llava,
    "llava_onevision": _llava_onevision,
    "smolvlm": _smolvlm,
    "idefics3": _idefics3,
    "internvl": _internvl,
    "gemma3_vision": _gemma3,
}
