"""Batches of conversations: which entries the model takes, and where its responses are.

Shapes: B batch, T sequence (right-padded), N response tokens of the batch laid flat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vlsi_cache.data.conversation import Conversation
from vlsi_cache.data.dataset import ConversationDataset
from vlsi_cache.data.encoder import BatchEncoder

__all__ = [
    "NON_MODEL_KEYS",
    "BatchCollator",
    "EncodedDataset",
    "model_inputs",
    "response_ids",
    "response_positions",
]

NON_MODEL_KEYS = ("response_mask", "sample_index")
"""Entries of a batch that no model's forward takes."""


def model_inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the model's forward takes of a batch."""
    return {name: value for name, value in batch.items() if name not in NON_MODEL_KEYS}


def response_positions(response_mask: Tensor) -> Tensor:
    """Where each response token is predicted: one position before it.

    Args:
        response_mask: ``[B, T]`` bool, never true in column 0, which nothing predicts.

    Returns:
        ``[N]`` int64, flat indices into ``[B * T]``, sample by sample.
    """
    return torch.nonzero(response_mask.flatten()).squeeze(1) - 1


def response_ids(batch: Mapping[str, Tensor]) -> Tensor:
    """The response tokens, ``[N]`` int64, in the order of `response_positions`."""
    return batch["input_ids"][batch["response_mask"]]


class EncodedDataset(Dataset[tuple[int, Conversation]]):
    """A `ConversationDataset` as PyTorch's loaders want it: ``(index, conversation)`` pairs."""

    def __init__(self, conversations: ConversationDataset) -> None:
        self.conversations = conversations

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> tuple[int, Conversation]:
        return index, self.conversations[index]


class BatchCollator:
    """Collates `EncodedDataset` items into an encoded batch with ``sample_index`` ``[B]`` int64."""

    def __init__(self, encoder: BatchEncoder) -> None:
        self.encoder = encoder

    def __call__(self, items: Sequence[tuple[int, Conversation]]) -> dict[str, Tensor]:
        """Encode the conversations.

        Raises:
            DataError: see `BatchEncoder`.
        """
        batch = self.encoder([conversation for _, conversation in items])
        batch["sample_index"] = torch.tensor([index for index, _ in items])
        return batch
