"""Real tokenizers with the special tokens and chat templates of families."""

from __future__ import annotations

from functools import cache

from transformers import PreTrainedTokenizerFast

from support import familytemplates as templates
from support.processors import build_tokenizer

__all__ = ["FAMILY_TOKENIZERS", "family_tokenizer"]

_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_IM_NAMES = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}

_FAMILIES: dict[str, tuple[str, tuple[str, ...], dict[str, str], str]] = {
    # kind: (pre-tokenization, special tokens, their names, template)
    "qwen3": ("bytes", _IM, _IM_NAMES, templates.QWEN3_FULL),
    "qwen3-thinking": ("bytes", _IM, _IM_NAMES, templates.QWEN3_THINKING),
    # <think> and </think> are special here, as in some checkpoints
    "qwq": ("bytes", (*_IM, "<think>", "</think>"), _IM_NAMES, templates.QWQ),
    "chatml-without-stop": ("bytes", _IM, _IM_NAMES, templates.CHATML_WITHOUT_STOP),
    "smollm3": ("bytes", _IM, _IM_NAMES, templates.SMOLLM3),
    "r1-distill": (
        "bytes",
        (
            "<｜begin▁of▁sentence｜>",
            "<｜end▁of▁sentence｜>",
            "<｜User｜>",
            "<｜Assistant｜>",
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁calls▁end｜>",
            "<｜tool▁call▁begin｜>",
            "<｜tool▁call▁end｜>",
            "<｜tool▁sep｜>",
            "<｜tool▁outputs▁begin｜>",
            "<｜tool▁outputs▁end｜>",
            "<｜tool▁output▁begin｜>",
            "<｜tool▁output▁end｜>",
        ),
        {
            "bos_token": "<｜begin▁of▁sentence｜>",
            "eos_token": "<｜end▁of▁sentence｜>",
            "pad_token": "<｜end▁of▁sentence｜>",
        },
        templates.R1_DISTILL,
    ),
    "glm4.5": (
        "bytes",
        (
            "<|endoftext|>",
            "[gMASK]",
            "<sop>",
            "<|system|>",
            "<|user|>",
            "<|assistant|>",
            "<|observation|>",
        ),
        {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        templates.GLM45,
    ),
    "command-r7b": (
        "bytes",
        (
            "<PAD>",
            "<BOS_TOKEN>",
            "<|START_OF_TURN_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
            "<|SYSTEM_TOKEN|>",
            "<|USER_TOKEN|>",
            "<|CHATBOT_TOKEN|>",
            "<|START_RESPONSE|>",
            "<|END_RESPONSE|>",
            "<|START_THINKING|>",
            "<|END_THINKING|>",
            "<|START_ACTION|>",
            "<|END_ACTION|>",
            "<|START_TOOL_RESULT|>",
            "<|END_TOOL_RESULT|>",
        ),
        {
            "bos_token": "<BOS_TOKEN>",
            "eos_token": "<|END_OF_TURN_TOKEN|>",
            "pad_token": "<PAD>",
        },
        templates.COMMAND_R7B,
    ),
    "granite3": (
        "bytes",
        ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"),
        {"eos_token": "<|end_of_text|>", "pad_token": "<|end_of_text|>"},
        templates.GRANITE3,
    ),
    "llama3.1": (
        "trimmed bytes",
        (
            "<|begin_of_text|>",
            "<|eot_id|>",
            "<|eom_id|>",
            "<|python_tag|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|finetune_right_pad_id|>",
        ),
        {
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|eot_id|>",
            "pad_token": "<|finetune_right_pad_id|>",
        },
        templates.LLAMA31,
    ),
    "mistral": (
        "words",
        (
            "<unk>",
            "<s>",
            "</s>",
            "[INST]",
            "[/INST]",
            "[TOOL_CALLS]",
            "[AVAILABLE_TOOLS]",
            "[/AVAILABLE_TOOLS]",
            "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]",
        ),
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"},
        templates.MISTRAL,
    ),
    "gpt-oss": (
        "bytes",
        (
            "<|startoftext|>",
            "<|endoftext|>",
            "<|start|>",
            "<|end|>",
            "<|message|>",
            "<|channel|>",
            "<|call|>",
            "<|return|>",
        ),
        {
            "bos_token": "<|startoftext|>",
            "eos_token": "<|return|>",
            "pad_token": "<|endoftext|>",
        },
        templates.GPT_OSS,
    ),
    "nemotron": (
        "bytes",
        ("<unk>", "<s>", "</s>", "<SPECIAL_11>", "<SPECIAL_12>"),
        {"bos_token": "<s>", "eos_token": "<SPECIAL_12>", "pad_token": "</s>"},
        templates.NEMOTRON,
    ),
    "phi4": (
        "bytes",
        ("<|endoftext|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"),
        {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        templates.PHI4,
    ),
    "gemma2": (
        "words",
        ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
        templates.GEMMA2,
    ),
}
FAMILY_TOKENIZERS = tuple(_FAMILIES)


@cache
def family_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A family's tokenizer with its chat template. It is shared, so do not change it."""
    style, special, names, template = _FAMILIES[kind]
    tokenizer = build_tokenizer(style, special, names)
    tokenizer.chat_template = template
    return tokenizer
