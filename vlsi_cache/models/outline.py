"""``Outline``: what a process knows of a model whose weights another process holds."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vlsi_cache.errors import first_line
from vlsi_cache.models.backbone import Backbone
from vlsi_cache.models.binding.head import Head, LogitTransform
from vlsi_cache.models.binding.skeleton import names_of
from vlsi_cache.models.decoder import Decoder
from vlsi_cache.models.identity import tokenizer_of, vocabulary_size
from vlsi_cache.models.loading.loading import sketch_model
from vlsi_cache.models.loading.processors import load_processor_of
from vlsi_cache.models.lora import linear_names
from vlsi_cache.models.places.hollow import hollow_out
from vlsi_cache.recipe import ModelSection, model_name

__all__ = [
    "Outline",
    "TensorOutline",
    "outline_of",
    "outlined_backbone",
    "outlined_decoder",
    "tensor_outlines",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TensorOutline:
    """A parameter or a buffer without its values."""

    name: str
    """Name within the module."""
    shape: tuple[int, ...]
    """Its sizes."""
    dtype: torch.dtype
    """Its dtype."""
    first: int
    """Number of the first name of the same tensor: tied weights have several names."""


@dataclass(frozen=True, slots=True)
class Outline:
    """What a model's weights have shown to the process that has read and bound them."""

    fingerprint: str
    """SHA-256 over the weights."""
    autocast: bool
    """Whether forwards that train run in bfloat16 autocast."""
    loading: Mapping[str, Any]
    """Kernels and quantisation, where they are not the default."""
    dtype: str
    """Dtype of the weights, as ``Backbone`` says it."""
    body: str
    """Name of the module that runs the blocks."""
    blocks: str
    """Name of the list of blocks."""
    final_norm: str | None
    """Name of the final norm, or None if the family has none."""
    transform: LogitTransform
    """The step from the head's product to logits."""
    maps: tuple[str, ...]
    """Names of the linear maps in the blocks."""
    tensors: tuple[TensorOutline, ...]
    """All parameters and buffers."""
    attributes: Mapping[tuple[str, str], Tensor]
    """Module and name → tensors that a module keeps beside its parameters and buffers."""


def outline_of(backbone: Backbone) -> Outline:
    """Return what other processes need to know of a loaded model."""
    decoder = backbone.decoder
    model, norm = decoder.model, decoder.final_norm
    named = [names_of(model, part)[0] for part in (decoder.body, decoder.blocks)]
    return Outline(
        backbone.fingerprint,
        backbone.autocast,
        backbone.loading,
        backbone.dtype,
        body=named[0],
        blocks=named[1],
        final_norm=names_of(model, norm)[0] if decoder.has_final_norm else None,
        transform=decoder.head.transform,
        maps=tuple(linear_names(decoder)),
        tensors=tuple(tensor_outlines(model)),
        attributes=_attributes(model),
    )


def outlined_backbone(section: ModelSection, outline: Outline) -> Backbone | None:
    """Return the model with its processor, without the values of its weights.

    Args:
        section: the recipe's section of the model.
        outline: what the process knows that holds the weights.

    Returns:
        None if the configuration alone does not give the model that was loaded.

    Raises:
        ModelError: the processor cannot be loaded.
    """
    decoder = outlined_decoder(section, outline)
    if decoder is None:
        return None
    processor = load_processor_of(section)
    return Backbone(
        model_name(section, "student"),
        processor,
        decoder,
        vocab_size=min(vocabulary_size(tokenizer_of(processor)), len(decoder.head.weight)),
        fingerprint=outline.fingerprint,
        autocast=outline.autocast,
        processor_options=section.processor,
        loading=outline.loading,
        dtype=outline.dtype,
    )


def outlined_decoder(section: ModelSection, outline: Outline) -> Decoder | None:
    """Return the view of a model of hollow weights, as ``outlined_backbone`` has it."""
    model = None if section.use_kernels else _sketched(section, outline)
    if model is None:
        return None
    untyped: Any = model
    output = untyped.get_output_embeddings()
    body, blocks = (model.get_submodule(name) for name in (outline.body, outline.blocks))
    norm = nn.Identity() if outline.final_norm is None else model.get_submodule(outline.final_norm)
    assert isinstance(blocks, nn.ModuleList)
    head = Head(output.weight, getattr(output, "bias", None), outline.transform)
    return Decoder(model, body, blocks, norm, head, maps=outline.maps)


def tensor_outlines(module: nn.Module) -> Iterator[TensorOutline]:
    """Yield the outline of each parameter and each buffer, under all of its names."""
    numbers: dict[int, int] = {}
    for name, value in _named_tensors(module):
        first = numbers.setdefault(id(value), len(numbers))
        yield TensorOutline(name, tuple(value.shape), value.dtype, first)


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from chain(
        module.named_parameters(remove_duplicate=False),
        module.named_buffers(remove_duplicate=False),
    )


def _sketched(section: ModelSection, outline: Outline) -> PreTrainedModel | None:
    """Return the model without weights, in the dtypes of the loaded one, if it has its tensors."""
    try:
        model = sketch_model(section)
    except Exception as error:
        # Anything, because the code is the family's own.
        logger.debug("the model cannot be made without weights: %s", first_line(error))
        return None
    found = tuple(tensor_outlines(model))
    if _shapes(found) != _shapes(outline.tensors):
        logger.debug("the configuration alone gives other weights")
        return None
    hollow_out(model, {one.name: one.dtype for one in outline.tensors})
    parts = dict(model.named_modules(remove_duplicate=False))
    for (owner, name), value in outline.attributes.items():
        setattr(parts[owner], name, value)
    return model.requires_grad_(False)


def _shapes(tensors: tuple[TensorOutline, ...]) -> list[tuple[str, tuple[int, ...], int]]:
    return [(one.name, one.shape, one.first) for one in tensors]


def _attributes(model: PreTrainedModel) -> dict[tuple[str, str], Tensor]:
    return {
        (owner, name): value
        for owner, part in model.named_modules(remove_duplicate=False)
        for name, value in vars(part).items()
        if isinstance(value, Tensor)
    }
