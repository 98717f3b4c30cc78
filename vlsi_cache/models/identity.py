"""Identity of models, tokenizers and templates, as hashes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Final

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from vlsi_cache.errors import ModelError
from vlsi_cache.models.places.devices import stored_weights
from vlsi_cache.models.places.parallel import is_split
from vlsi_cache.models.places.quantization import quantization_of

__all__ = [
    "PINNED_DAY",
    "chat_template_hash",
    "config_hash",
    "processor_name",
    "tokenizer_of",
    "vocabulary_hash",
    "vocabulary_size",
    "weights_fingerprint",
]

_SAMPLES = 1024

PINNED_DAY: Final = "2024-07-26"
"""The day that chat templates see in place of today: that of Llama's own default."""

_UNDECIDING: Final = re.compile(
    r"_.*|transformers_version|.*dropout|.*_pdrop|initializer_range|return_dict|use_cache"
    r"|output_(attentions|hidden_states|router_logits)|router_(aux|z)_loss_coef"
    r"|dtype|torch_dtype|.*_implementation|quantization_config|name_or_path|architectures|auto_map"
    r"|tokenizer_class|.*2label|label2.*|problem_type|num_labels|task_specific_params"
    r"|(bos|eos|pad)_token_id|transformers\..*|unsloth_.*"
)
"""Keys of a config that decide no number of a forward pass, or that the manifest has elsewhere:
names, versions, dtypes, kernels, quantisation, and what only training or generating reads."""


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


def config_hash(config: PreTrainedConfig) -> str:
    """Hex SHA-256 over what a model's configuration decides beside its weights.

    Values that are not there and null are the same. Defaults of the model's class count.
    """
    return _hash_json(_deciding(config.to_dict()))


def _deciding(value: Any) -> Any:
    """Return the values that decide, as JSON that one meaning has one form of."""
    if isinstance(value, Mapping):
        kept = {str(key): _deciding(one) for key, one in value.items()}
        return {
            key: one
            for key, one in kept.items()
            if one is not None and not _UNDECIDING.fullmatch(key)
        }
    if isinstance(value, list | tuple):
        return [_deciding(one) for one in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return type(value).__name__


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
