"""Batches of conversations: the model's inputs, and the positions of the responses.

Shapes: B batch, T sequence (right-padded), N response tokens of the batch laid flat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedConfig

from vlsi_cache.data.conversation import Conversation
from vlsi_cache.data.encoding.encoder import BatchEncoder
from vlsi_cache.data.encoding.rendering.template import ChatTemplate, has_template
from vlsi_cache.data.reading.dataset import ConversationDataset
from vlsi_cache.errors import DataError
from vlsi_cache.models import (
    Backbone,
    context_length,
    load_config_of,
    load_processor_of,
    short_length,
    text_config,
)
from vlsi_cache.recipe import DataSection, ModelSection

__all__ = [
    "IndexedConversations",
    "TokenBatches",
    "encoder_for",
    "encoder_of",
    "known_ids",
    "length_limit",
    "model_inputs",
    "response_ids",
    "response_positions",
    "validate_template",
]

_PLACEHOLDERS = ("image", "img", "video", "audio", "vision", "boi", "eoi")
"""Beginnings of the names under which configurations hold ids of placeholders."""


def model_inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a batch that the model's forward takes."""
    return {name: value for name, value in batch.items() if name != "response_mask"}


def response_positions(response_mask: Tensor) -> Tensor:
    """The position that predicts each response token: one before it.

    Args:
        response_mask: ``[B, T]`` bool. Column 0 is never true, because nothing predicts it.

    Returns:
        ``[N]`` int64, flat indices into ``[B * T]``, sample by sample.
    """
    return torch.nonzero(response_mask.flatten()).squeeze(1) - 1


def response_ids(batch: Mapping[str, Tensor]) -> Tensor:
    """The response tokens, ``[N]`` int64, in the order of `response_positions`."""
    return batch["input_ids"][batch["response_mask"]]


class IndexedConversations(Dataset[tuple[int, Conversation]]):
    """A `ConversationDataset` for PyTorch's loaders: ``(index, conversation)`` pairs."""

    def __init__(self, conversations: ConversationDataset) -> None:
        self.conversations = conversations

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> tuple[int, Conversation]:
        return index, self.conversations[index]


class TokenBatches:
    """Collates conversations into the inputs of a stage's forward.

    The batch holds the model's inputs, and three tensors over its N response tokens:
    ``positions`` ``[N]`` (flat index of the position that predicts each), ``labels`` ``[N]``
    (the tokens) and ``token_samples`` ``[N]`` (row of the batch). All are made on the CPU, so
    that a training step never waits for the device to count them.
    """

    def __init__(self, encoder: BatchEncoder) -> None:
        self.encoder = encoder

    def __call__(self, items: Sequence[tuple[int, Conversation]]) -> dict[str, Any]:
        """Collate ``(sample index, conversation)`` pairs."""
        batch = self.encoder([conversation for _, conversation in items])
        mask = batch["response_mask"]
        counts = mask.sum(1)
        return {
            "inputs": model_inputs(batch),
            "positions": response_positions(mask),
            "labels": response_ids(batch),
            "token_samples": torch.repeat_interleave(torch.arange(len(items)), counts),
        }


def encoder_for(backbone: Backbone, section: DataSection) -> BatchEncoder:
    """Make an encoder for a model's own processor, bounded by the model's context.

    Args:
        backbone: the model and its processor.
        section: the recipe's ``data``. Its ``max_length`` may be a stricter bound.
    """
    model = backbone.decoder.model
    limit = length_limit(text_config(model), section)
    embedding: Any = model.get_input_embeddings()
    known = known_ids(model.config, getattr(embedding, "num_embeddings", None))
    return BatchEncoder(
        backbone.processor,
        max_length=limit,
        num_ids=known,
        short_length=short_length(text_config(model)),
    )


def encoder_of(model: ModelSection, section: DataSection) -> BatchEncoder:
    """Make the same encoder as ``encoder_for``, before the model is loaded.

    Args:
        model: the recipe's ``teacher`` or ``student``.
        section: the recipe's ``data``.

    Raises:
        ModelError: the configuration or the processor cannot be loaded.
    """
    config = load_config_of(model)
    limit = length_limit(config.get_text_config(decoder=True), section)
    return BatchEncoder(
        load_processor_of(model),
        max_length=limit,
        num_ids=known_ids(config),
        short_length=short_length(config.get_text_config(decoder=True)),
    )


def validate_template(model: ModelSection, data: ConversationDataset) -> None:
    """Refuse a model without a chat template before it is loaded, by the first sample.

    Args:
        model: the recipe's ``teacher`` or ``student``.
        data: its conversations. Plain texts need no template.

    Raises:
        ModelError: there is none, or it does not render a plain question and answer.
    """
    try:
        first = data[0]
    except DataError:  # a run stops at it or leaves it out, as its recipe says
        return
    processor = load_processor_of(model)
    if first.templated and (has_template(processor) or not first.continues):
        ChatTemplate(processor)


def known_ids(config: PreTrainedConfig, num_embeddings: int | None = None) -> int | None:
    """Return the number of token ids that a model takes, or None if its configuration names none.

    Some families replace the placeholders of images before they look them up. Those may lie beyond
    the embedding. Others, such as Molmo 2, have rows for them beyond the vocabulary.

    Args:
        config: the model's whole configuration.
        num_embeddings: rows of the embedding, if the model is loaded.
    """
    text = config.get_text_config(decoder=True)
    words = getattr(text, "vocab_size", None)
    if not isinstance(words, int):
        return None
    # A family may have rows that its configuration does not count, and keep others elsewhere.
    rows = max(num_embeddings or 0, words + (getattr(text, "additional_vocab_size", None) or 0))
    named = {**text.to_dict(), **config.to_dict()}
    places = [
        value
        for name, value in named.items()
        if isinstance(value, int)
        and name.endswith(("_token_id", "_token_index"))
        and name.startswith(_PLACEHOLDERS)
    ]
    return max([rows, *(place + 1 for place in places)])


def length_limit(config: PreTrainedConfig, section: DataSection) -> int | None:
    """Return the most tokens of a conversation.

    Args:
        config: configuration of the model's language side.
        section: the recipe's ``data``. Its ``max_length`` may be a stricter bound.

    Returns:
        The limit, or None if neither sets one.
    """
    context = context_length(config)
    return min((limit for limit in (section.max_length, context) if limit), default=None)
