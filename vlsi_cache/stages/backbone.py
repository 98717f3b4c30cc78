"""A loaded model with everything a stage asks of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlsi_cache.data import BatchEncoder, ConversationDataset, load_conversations
from vlsi_cache.errors import RecipeError
from vlsi_cache.models import (
    Decoder,
    TapState,
    bind_decoder,
    chat_template_hash,
    load_model,
    load_processor,
    record_taps,
    text_config,
    tokenizer_of,
    vocabulary_hash,
    vocabulary_size,
    weights_fingerprint,
)
from vlsi_cache.recipe import DataSection, ModelSection
from vlsi_cache.stages.processes import on_main_process

__all__ = ["Backbone", "load_backbone", "load_data", "run_backbone", "save_checkpoint"]


@dataclass(frozen=True, slots=True)
class Backbone:
    """A model, its processor and the view of its decoder."""

    name: str
    """`from_pretrained` name or folder."""
    processor: Any
    """Processor or tokenizer."""
    decoder: Decoder
    """Blocks, norm, head."""
    vocab_size: int
    """Rows of the head that the tokenizer can produce."""
    fingerprint: str
    """SHA-256 over the weights as loaded."""

    @property
    def device(self) -> torch.device:
        """Where the head lives."""
        return self.decoder.head.weight.device

    def identity(self) -> dict[str, str]:
        """What a stage's result depends on: weights and dtype, tokens, template."""
        return {
            "weights": self.fingerprint,
            "dtype": str(self.decoder.model.dtype).removeprefix("torch."),
            "tokenizer": vocabulary_hash(tokenizer_of(self.processor)),
            "chat_template": chat_template_hash(self.processor),
        }

    def encoder(self, data: DataSection) -> BatchEncoder:
        """Conversations → batches, bounded by the model's context."""
        context = getattr(text_config(self.decoder.model), "max_position_embeddings", None)
        limits = [limit for limit in (data.max_length, context) if limit]
        return BatchEncoder(self.processor, max_length=min(limits) if limits else None)


def load_backbone(section: ModelSection, role: str, device: torch.device, dtype: str) -> Backbone:
    """Load a model with its processor, and bind its decoder.

    Args:
        section: the recipe's ``teacher`` or ``student``.
        role: which of the two, for messages.
        device: where to put it.
        dtype: weights' dtype, or ``auto`` for the checkpoint's own.

    Raises:
        RecipeError: no model is named.
        ModelError: it cannot be loaded or bound.
    """
    if section.model is None:
        raise RecipeError(
            "no model is named",
            where=f"{role}.model",
            expected="a from_pretrained name or folder",
            mend=f"Give --{role} MODEL, or set {role}.model in the recipe",
        )
    model = load_model(section.model, dtype=dtype, device=device)
    processor = load_processor(section.model)
    decoder = bind_decoder(model)
    model.eval().requires_grad_(False)
    return Backbone(
        name=section.model,
        processor=processor,
        decoder=decoder,
        vocab_size=min(vocabulary_size(tokenizer_of(processor)), len(decoder.head.weight)),
        fingerprint=weights_fingerprint(model),
    )


def load_data(data: DataSection) -> ConversationDataset:
    """The recipe's conversations.

    Raises:
        RecipeError: no data is named.
        DataError: they cannot be read.
    """
    if data.path is None:
        raise RecipeError(
            "no data is named",
            where="data.path",
            expected="a JSON or JSONL file, a datasets folder or a hub name",
            mend="Give --data PATH, or set data.path in the recipe",
        )
    return load_conversations(data.path, split=data.split, limit=data.limit)


def save_checkpoint(model: Any, source: str, folder: Path) -> None:
    """Write an ordinary checkpoint, by one process for all.

    Args:
        model: what is saved.
        source: whose processor is saved beside it: anew, since one that was used remembers how.
        folder: where to.
    """

    def write() -> None:
        model.save_pretrained(folder)
        load_processor(source).save_pretrained(folder)

    on_main_process(write)


def run_backbone(
    decoder: Decoder, taps: Sequence[int], inputs: Mapping[str, Tensor], positions: Tensor
) -> tuple[dict[int, TapState], Tensor]:
    """Run a model without its head.

    Args:
        decoder: its view.
        taps: block indices.
        inputs: what its forward takes.
        positions: ``[N]`` long, flat indices into ``B × T``.

    Returns:
        What was recorded at each tap, and the final features ``[N, D]``, after the final norm.
    """
    with record_taps(decoder, taps) as recorder:
        decoder.backbone(**inputs, use_cache=False)
    return dict(recorder.states), recorder.features.flatten(0, 1)[positions]
