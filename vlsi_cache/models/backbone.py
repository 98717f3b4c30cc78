"""``Backbone``: a loaded model with its processor, and the pass without its head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlsi_cache.models.decoder import Decoder, bind_decoder
from vlsi_cache.models.head import Head
from vlsi_cache.models.identity import (
    chat_template_hash,
    tokenizer_of,
    vocabulary_hash,
    vocabulary_size,
    weights_fingerprint,
)
from vlsi_cache.models.loading import load_model, load_processor_of
from vlsi_cache.models.precision import frozen_dtype, trained_dtype, uses_autocast
from vlsi_cache.models.preview import model_name
from vlsi_cache.models.taps import TapState, capture_taps
from vlsi_cache.phases import phase
from vlsi_cache.recipe import ModelSection

__all__ = ["Backbone", "load_backbone", "run_backbone"]


@dataclass(frozen=True, slots=True)
class Backbone:
    """A model, its processor and the view of its decoder."""

    name: str
    """`from_pretrained` name or folder."""
    processor: Any
    """Processor or tokenizer."""
    decoder: Decoder
    """View of the model's blocks, final norm and head."""
    vocab_size: int
    """Rows of the head that the tokenizer can produce."""
    fingerprint: str
    """SHA-256 over the weights after loading."""
    autocast: bool = False
    """Whether forwards that train run in bfloat16 autocast."""
    processor_options: Mapping[str, Any] = field(default_factory=dict)
    """The recipe's options of the processor."""

    @property
    def head(self) -> Head:
        """The head without padded rows. Views of the weights, made at each call."""
        return self.decoder.head.real_rows(self.vocab_size)

    @property
    def device(self) -> torch.device:
        """Device of the head."""
        return self.decoder.head.weight.device

    def identity(self) -> dict[str, Any]:
        """Everything of the model that a stage's result depends on."""
        options = {"processor": dict(self.processor_options)} if self.processor_options else {}
        return {
            **options,
            "weights": self.fingerprint,
            "dtype": str(self.decoder.model.dtype).removeprefix("torch."),
            "tokenizer": vocabulary_hash(tokenizer_of(self.processor)),
            "chat_template": chat_template_hash(self.processor),
        }


def load_backbone(
    section: ModelSection, role: str, device: torch.device, *, trains: bool = False
) -> Backbone:
    """Load a model with its processor, and bind its decoder.

    Args:
        section: the recipe's ``teacher`` or ``student``.
        role: name of the section, for errors.
        device: device of the model.
        trains: whether the model's own weights will train, which decides their dtype.

    Raises:
        RecipeError: no model is named.
        ModelError: the model cannot be loaded or bound.
    """
    name = model_name(section, role)
    dtype = trained_dtype(section.dtype) if trains else frozen_dtype(section.dtype, device)
    with phase(f"loading the {role} {name}"):
        model = load_model(name, dtype=dtype, device=device, revision=section.revision)
        processor = load_processor_of(section)
    with phase(f"binding the {role}: blocks, norm, head"):
        decoder = bind_decoder(model)
    model.eval().requires_grad_(False)
    return Backbone(
        name=name,
        processor=processor,
        decoder=decoder,
        vocab_size=min(vocabulary_size(tokenizer_of(processor)), len(decoder.head.weight)),
        fingerprint=weights_fingerprint(model),
        autocast=uses_autocast(section.dtype, device),
        processor_options=section.processor,
    )


def run_backbone(
    decoder: Decoder, taps: Sequence[int], inputs: Mapping[str, Tensor], positions: Tensor
) -> tuple[dict[int, TapState], Tensor]:
    """Run a model without its head.

    Args:
        decoder: view of the model.
        taps: block indices.
        inputs: inputs of the model's forward.
        positions: ``[N]`` long, flat indices into ``B × T``.

    Returns:
        The state of each tap, and the features ``[N, D]`` after the final norm.
    """
    with capture_taps(decoder, taps) as capture:
        decoder.backbone(**inputs, use_cache=False)
    return dict(capture.states), capture.features.flatten(0, 1)[positions]
