"""Identity of models, tokenizers and templates, as hashes."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Final

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from vlsi_cache.errors import ModelError
from vlsi_cache.models.places.devices import stored_weights
from vlsi_cache.models.places.parallel import is_split
from vlsi_cache.models.places.quantization import quantization_of

__all__ = [
    "PINNED_DAY",
    "chat_template_hash",
    "processor_name",
    "tokenizer_of",
    "vocabulary_hash",
    "vocabulary_size",
    "weights_fingerprint",
]

_SAMPLES = 1024

PINNED_DAY: Final = "2024-07-26"
"""The day that chat templates see in place of today: that of Llama's own default."""


def weights_fingerprint(model: PreTrainedModel) -> str:
    """Hex SHA-256 over every weight's name, shape and at most 1,024 of its values as bfloat16.

    The hash does not depend on the device. Copies of one checkpoint in float32 and bfloat16 agree,
    because rounding to bfloat16 comes before hashing. A sample of the values keeps it cheap for
    72 B parameters. Training moves all weights, so the sample shows it. Processes that hold the
    model together must all ask for it. If it is quantised, the hash is that of their number, too.
    """
    digest = hashlib.sha256()
    for name, weight in stored_weights(model):
        digest.update(f"{name} {tuple(weight.shape)}\n".encode())
        digest.update(_sampled_bytes(weight))
    if is_split(model) and quantization_of(model.config):
        # Each process quantises its own part, with scales of its own: other weights than whole ones
        parts = gather_object([digest.hexdigest()])
        return hashlib.sha256("".join(parts).encode()).hexdigest()
    return digest.hexdigest()


def tokenizer_of(processor: ProcessorMixin | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer inside a processor, or the tokenizer itself.

    Raises:
        ModelError: the processor has no tokenizer.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ModelError("the processor has no tokenizer", where=type(processor).__name__)
    return tokenizer


def processor_name(processor: ProcessorMixin | PreTrainedTokenizerBase) -> str:
    """The model that a processor was loaded with, or its class if it was not loaded."""
    tokenizer = getattr(processor, "tokenizer", processor)
    return str(getattr(tokenizer, "name_or_path", "") or type(processor).__name__)


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hex SHA-256 over all (token, id) pairs, added tokens included, in order of ids."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return _hash_json(vocabulary)


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the tokenizer's highest id: the number of a head's rows without padding.

    It equals `len(tokenizer)` unless the ids have gaps.
    """
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def chat_template_hash(processor: ProcessorMixin | PreTrainedTokenizerBase) -> str:
    """Hex SHA-256 over the chat template that `processor` applies, or over its absence.

    What a template is given beside the conversation counts, where the template reads it: the
    tokenizer's named tokens (``bos_token``), and the pinned day in place of ``strftime_now``.
    """
    tokenizer = tokenizer_of(processor)
    template = getattr(processor, "chat_template", None)
    if template is None:
        template = tokenizer.chat_template
    source = template if isinstance(template, str) else json.dumps(template)
    named = {"strftime_now": PINNED_DAY, **tokenizer.special_tokens_map}
    given = {
        name: str(value)
        for name, value in named.items()
        if re.search(rf"\b{re.escape(name)}\b", source)
    }
    return _hash_json({"template": template, "given": given} if given else template)


def _sampled_bytes(weight: Tensor) -> bytes:
    # An odd stride reaches all columns of matrices whose width is a power of two.
    stride = -(-weight.numel() // _SAMPLES) | 1
    sample = weight.detach().reshape(-1)[::stride].cpu()
    if sample.is_floating_point():
        # As bit patterns, because numpy has no bfloat16.
        return sample.to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()
    return sample.to(torch.int64).contiguous().numpy().tobytes()


def _hash_json(value: object) -> str:
    text = json.dumps(value, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
