"""What a model's small files say, before its weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from vlsi_cache.models.binding.taps import resolve_taps
from vlsi_cache.models.identity import tokenizer_of, vocabulary_hash, vocabulary_size
from vlsi_cache.models.loading.configs import load_config_of
from vlsi_cache.models.loading.kinds import loader_of
from vlsi_cache.models.loading.loading import preview_weights
from vlsi_cache.models.loading.options import validate_patches
from vlsi_cache.models.loading.processors import load_processor_of
from vlsi_cache.models.places.feasibility import validate_loading
from vlsi_cache.models.places.quantization import validate_not_quantised
from vlsi_cache.recipe import ModelSection, model_name

__all__ = ["ModelPreview", "describe_model", "preview_model"]


@dataclass(frozen=True, slots=True)
class ModelPreview:
    """A model, known by its configuration and its tokenizer alone."""

    name: str
    """`from_pretrained` name or folder."""
    role: str
    """`teacher` or `student`."""
    num_blocks: int | None
    """Number of decoder blocks, if the configuration says it."""
    vocab_size: int
    """Most tokens that the head can have, by the tokenizer."""
    vocabulary: str
    """SHA-256 of the tokenizer's vocabulary."""
    hidden_size: int | None = None
    """Width of the blocks' output, if the configuration says it."""

    def resolve_taps(self, taps: Sequence[int] | None) -> tuple[int, ...] | None:
        """Return the taps that will be read, or None while the number of blocks is not known.

        Raises:
            ModelError: some are not blocks.
        """
        if self.num_blocks is None:
            return None
        return resolve_taps(taps, self.num_blocks, where=f"{self.role}.taps")


def preview_model(section: ModelSection, role: str) -> ModelPreview:
    """Read a model's configuration and tokenizer, and refuse what cannot be loaded.

    Args:
        section: the recipe's ``teacher`` or ``student``.
        role: name of the section, for errors.

    Raises:
        RecipeError: no model is named.
        ModelError: there is no such model, or it lacks a configuration, weights or a tokenizer. Or
            it is a quantised student. Or the section asks for devices, kernels or packages that
            are not here.
    """
    name = model_name(section, role)
    config = load_config_of(section)
    if role == "student":
        validate_not_quantised(config, name)
    validate_loading(section, config, loader_of(config, name))
    preview_weights(name, config, revision=section.revision)
    tokenizer = tokenizer_of(load_processor_of(section))
    validate_patches(section.processor, config, where=name)
    return describe_model(name, role, config, tokenizer)


def describe_model(
    name: str, role: str, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> ModelPreview:
    """Return what a configuration and a tokenizer say of their model.

    Args:
        name: name of the model.
        role: `teacher` or `student`.
        config: its configuration.
        tokenizer: its tokenizer.
    """
    text = config.get_text_config(decoder=True)
    return ModelPreview(
        name=name,
        role=role,
        num_blocks=getattr(text, "num_hidden_layers", None),
        vocab_size=vocabulary_size(tokenizer),
        vocabulary=vocabulary_hash(tokenizer),
        hidden_size=getattr(text, "hidden_size", None),
    )
