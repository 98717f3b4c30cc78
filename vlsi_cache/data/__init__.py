"""Conversations with images: from rows on disk to batches with a response mask."""

from vlsi_cache.data.batches import (
    IndexedConversations,
    TokenBatches,
    encoder_for,
    encoder_of,
    known_ids,
    length_limit,
    model_inputs,
    response_ids,
    response_positions,
    validate_template,
)
from vlsi_cache.data.conversation import Conversation, ImagePart, Message, TextPart
from vlsi_cache.data.encoding.encoder import BatchEncoder
from vlsi_cache.data.encoding.tally import report_changed_samples, take_changed_samples
from vlsi_cache.data.images import ImageRef
from vlsi_cache.data.lengths import rough_length
from vlsi_cache.data.reading.dataset import ConversationDataset, load_conversations, load_data
from vlsi_cache.data.reading.remembered import DataFindings

__all__ = [
    "BatchEncoder",
    "Conversation",
    "ConversationDataset",
    "DataFindings",
    "ImagePart",
    "ImageRef",
    "IndexedConversations",
    "Message",
    "TextPart",
    "TokenBatches",
    "encoder_for",
    "encoder_of",
    "known_ids",
    "length_limit",
    "load_conversations",
    "load_data",
    "model_inputs",
    "report_changed_samples",
    "response_ids",
    "response_positions",
    "rough_length",
    "take_changed_samples",
    "validate_template",
]
