"""Conversations with images: from rows on disk to batches with a response mask."""

from vlsi_cache.data.batches import (
    NON_MODEL_KEYS,
    BatchCollator,
    EncodedDataset,
    model_inputs,
    response_ids,
    response_positions,
)
from vlsi_cache.data.conversation import Conversation, ImagePart, Message, TextPart
from vlsi_cache.data.dataset import ConversationDataset, load_conversations
from vlsi_cache.data.encoder import BatchEncoder
from vlsi_cache.data.images import ImageRef

__all__ = [
    "NON_MODEL_KEYS",
    "BatchCollator",
    "BatchEncoder",
    "Conversation",
    "ConversationDataset",
    "EncodedDataset",
    "ImagePart",
    "ImageRef",
    "Message",
    "TextPart",
    "load_conversations",
    "model_inputs",
    "response_ids",
    "response_positions",
]
