"""Made-up models, text and manifests, for smokes and where words do not matter."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlsi_cache.distribution import DrawnFrom
from vlsi_cache.manifest import CacheManifest

__all__ = ["byte_processor", "made_up_manifest", "save_small_model", "write_letters"]

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_processor() -> Any:
    """Build a tokenizer with a token for every byte, in ChatML."""
    # These libraries load slowly, and caches without text need none of them.
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL),
        chat_template=TEMPLATE,
    )


def save_small_model(folder: Path, num_blocks: int) -> None:
    """Save a Llama that reads bytes, with its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    processor = byte_processor()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(processor),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=num_blocks,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    processor.save_pretrained(folder)


def made_up_manifest(
    num_samples: int,
    *,
    vocab_size: int,
    taps: Sequence[int],
    k: int,
    m: int,
    samples_per_shard: int,
    drawn_from: DrawnFrom = "rest",
) -> CacheManifest:
    """Build the manifest of a cache whose teacher and text are not named.

    Args:
        num_samples: Samples of the cache.
        vocab_size: Number of token ids.
        taps: Taps of the teacher, without the output.
        k: Number of most likely tokens in a record.
        m: Number of draws in a record.
        samples_per_shard: Samples of a full shard.
        drawn_from: What the draws come from if k ≥ 1.
    """
    digest = hashlib.sha256(b"benchmark").hexdigest()
    return CacheManifest.model_validate(
        {
            "format_version": 2 if drawn_from == "whole" else 1,
            "vlsi_cache_version": "0",
            "teacher": {"name": "teacher", "model_type": "llama", "weights_fingerprint": digest},
            "verbalizers_fingerprint": digest,
            "tokenizer": {"name": "teacher", "hash": digest, "vocab_size": vocab_size},
            "chat_template_hash": digest,
            "dataset": {"source": "text", "fingerprint": digest, "num_samples": num_samples},
            "taps": (*taps, -1),
            "sampling": {"k": k, "m": m, "seed": 0, "drawn_from": drawn_from},
            "samples_per_shard": samples_per_shard,
            "batch_size": 8,
            "dtype": "float32",
        }
    )


def write_letters(path: Path, count: int) -> Path:
    """Write ``count`` conversations of a few letters and digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = ("brown", "wordnet", "word")
    lines = []
    for index in range(count):
        answer = f"{path.stem} {index * 7919 % 1000:03d}"
        messages = [
            {"role": "user", "content": f"what is number {index}"},
            {"role": "assistant", "content": answer},
        ]
        lines.append(json.dumps({"id": f"{kinds[index % 3]}-{index}", "messages": messages}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path
