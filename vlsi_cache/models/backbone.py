"""``Backbone``: a loaded model with its processor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from vlsi_cache.models.binding.binding import bind_decoder
from vlsi_cache.models.binding.head import Head
from vlsi_cache.models.decoder import Decoder
from vlsi_cache.models.identity import (
    chat_template_hash,
    config_hash,
    tokenizer_of,
    vocabulary_hash,
    vocabulary_size,
    weights_fingerprint,
)
from vlsi_cache.models.loading.configs import load_config_of
from vlsi_cache.models.loading.loading import load_model
from vlsi_cache.models.loading.precision import frozen_dtype, trained_dtype, uses_autocast
from vlsi_cache.models.loading.processors import load_processor_of
from vlsi_cache.models.places.arguments import loading_identity
from vlsi_cache.models.places.compiling import compile_blocks
from vlsi_cache.models.places.quantization import quantization_of, validate_not_quantised
from vlsi_cache.phases import phase
from vlsi_cache.recipe import ModelSection, TeacherSection, model_name

__all__ = ["Backbone", "load_backbone"]


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
    loading: Mapping[str, Any] = field(default_factory=dict)
    """Kernels and quantisation, where they are not the default: they change the numbers."""
    dtype: str = "float32"
    """Dtype of the weights, or `bfloat16` where float32 weights train to be saved in it."""
    config_hash: str = ""
    """SHA-256 over what its configuration decides, as it was after loading."""

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
        loading = {"loading": dict(self.loading)} if self.loading else {}
        return {
            **options,
            **loading,
            "weights": self.fingerprint,
            "dtype": self.dtype,
            "tokenizer": vocabulary_hash(tokenizer_of(self.processor)),
            "chat_template": chat_template_hash(self.processor),
        }


def load_backbone(
    section: ModelSection,
    role: str,
    device: torch.device,
    *,
    trains: bool = False,
    place: torch.device | None = None,
    called: str | None = None,
) -> Backbone:
    """Load a model with its processor, and bind its decoder.

    Args:
        section: the recipe's ``teacher`` or ``student``.
        role: name of the section, for errors.
        device: device of the model.
        trains: whether the model's own weights will train, which decides their dtype.
        place: where the model lies until it is sharded; on its device if None.
        called: the model's name in log lines; its role if None.

    Raises:
        RecipeError, ModelError: no model is named, or it cannot be loaded or bound.
    """
    name, learns = model_name(section, role), trains or role == "student"
    if learns:  # whole, or its adapters
        validate_not_quantised(load_config_of(section), name)
    with phase(f"loading the {called or role} {name}"):
        model, processor = _loaded(section, device, place or device, trains=trains)
    decoder = _bound(model, section, role, learns=learns)
    return Backbone(
        name,
        processor,
        decoder,
        vocab_size=min(vocabulary_size(tokenizer_of(processor)), len(decoder.head.weight)),
        fingerprint=weights_fingerprint(model),
        autocast=uses_autocast(section.dtype, device),
        processor_options=section.processor,
        loading=loading_identity(section) | _quantization(model, section),
        dtype=_dtype_name(model, section),
        config_hash=config_hash(model.config),
    )


def _loaded(
    section: ModelSection, device: torch.device, place: torch.device, *, trains: bool
) -> tuple[PreTrainedModel, Any]:
    """Load a model and its processor."""
    dtype = trained_dtype(section.dtype) if trains else frozen_dtype(section.dtype, device)
    name, revision = section.model or "", section.revision
    model = load_model(name, dtype=dtype, device=place, revision=revision, section=section)
    return model, load_processor_of(section)


def _bound(model: PreTrainedModel, section: ModelSection, role: str, *, learns: bool) -> Decoder:
    with phase(f"binding the {role}: blocks, norm, head"):
        decoder = bind_decoder(model, learns=learns)
        if isinstance(section, TeacherSection) and section.compile:
            compile_blocks(decoder)
            decoder = bind_decoder(model, learns=learns)  # proves what will run
    model.eval().requires_grad_(False)  # nothing trains yet
    return decoder


def _dtype_name(model: PreTrainedModel, section: ModelSection) -> str:
    own = str(model.dtype).removeprefix("torch.")
    return section.dtype if section.dtype == "bfloat16" else own


def _quantization(model: PreTrainedModel, section: ModelSection) -> dict[str, Any]:
    # Where weights are turned back on loading, the model forgets what its checkpoint was.
    found = quantization_of(model.config) or quantization_of(load_config_of(section))
    return {"quantization": found} if found else {}
