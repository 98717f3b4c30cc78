"""Conversations with images: from rows on disk to batches with a response mask."""

from vlsi_cache.data.batches import (
    IndexedConversations,
    TokenBatches,
    encoder_for,
    model_inputs,
    response_ids,
    response_positions,
)
from vlsi_cache.data.conversation import Conversation, ImagePart, Message, TextPart
from vlsi_cache.data.encoding.encoder import BatchEncoder
from vlsi_cache.data.images import ImageRef
from vlsi_cache.data.reading.dataset import ConversationDataset, load_conversations, load_data

__all__ = [
    "BatchEncoder",
    "Conversation",
    "ConversationDataset",
    "ImagePart",
    "ImageRef",
    "IndexedConversations",
    "Message",
    "TextPart",
    "TokenBatches",
    "encoder_for",
    "load_conversations",
    "load_data",
    "model_inputs",
    "response_ids",
    "response_positions",
]
